"""The proxies break what they say they break, and let everything through when healed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import orjson
import pytest

from tests.faults.proxy import HOST, Network, StoreFront, half_of, until
from workers.supervision.broker import free_port


@pytest.fixture
def echo() -> Iterator[int]:
    """A TCP server that says everything back."""
    server = socket.create_server((HOST, 0))
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    ended.set()
    server.close()


def test_a_cut_network_passes_nothing_and_then_everything(echo: int):
    with Network(free_port(), echo) as network, socket.create_connection((HOST, network.port)) as client:
        client.settimeout(5)
        client.sendall(b"before")
        assert client.recv(100) == b"before"
        network.cut()
        until(lambda: not network._open.is_set(), 5, "cut")
        client.sendall(b"during")
        until(lambda: network.held > 0, 5, "held")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)
        network.heal()
        client.settimeout(5)
        assert client.recv(100) == b"during"


@pytest.fixture
def written() -> Iterator[tuple[int, list[Any]]]:
    """A server that takes requests and remembers their bodies."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(orjson.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"status":"ok"}')

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer((HOST, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], bodies
    server.shutdown()
    server.server_close()


def batch(number: int) -> dict[str, Any]:
    return {"operations": [{"upsert": {"points": [{"id": f"p{n}"}]}} for n in range(number)]}


def test_each_way_in_which_a_store_fails(written: tuple[int, list[Any]]):
    target, bodies = written
    with StoreFront(target, delay_s=0.3) as front, httpx.Client(base_url=f"http://{HOST}:{front.port}") as client:
        assert client.post("/points/batch", json=batch(4)).json() == {"status": "ok"}
        front.mode = "busy"
        refused = client.post("/points/batch", json=batch(4))
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        front.mode = "away"
        with pytest.raises(httpx.TransportError):
            client.post("/points/batch", json=batch(4))
        assert len(bodies) == 1
        front.mode = "half"
        with pytest.raises(httpx.TransportError):
            client.post("/points/batch", json=batch(4))
        assert bodies[1] == batch(2)
        assert client.post("/points", json={"ids": []}).status_code == 200  # reads pass
        front.mode = "slow"
        assert client.post("/points/batch", json=batch(1)).elapsed.total_seconds() >= 0.3
        assert front.counts == {"busy": 1, "away": 1, "half": 1, "slow": 1}


def test_half_of_a_batch():
    assert orjson.loads(half_of("/c/points/batch?wait=true", orjson.dumps(batch(5))) or b"") == batch(2)
    assert orjson.loads(half_of("/c/points/batch", orjson.dumps(batch(1))) or b"") == batch(1)
    assert half_of("/c/points", b"{}") is None
