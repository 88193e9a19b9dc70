"""Proxies on this machine that break the way to a broker (`Network`) or to the store (`StoreFront`) on command."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

import orjson

HOST = "127.0.0.1"
StoreMode = Literal["ok", "away", "slow", "busy", "half"]


class Network:
    """A TCP proxy. While it is cut, no byte passes in either direction and connections stay open, as when a cable is
    pulled: neither side learns that the other is gone.

    Args:
        port: to listen on; a broker must advertise it, or clients go around the proxy.
        target: port on this machine.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.held = 0  # pieces of data and connections that had to wait for the cut to end
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="network")
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Network:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Let nothing pass from now on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def heal(self) -> None:
        """Let everything pass again, first what was held."""
        self._loop.call_soon_threadsafe(self._open.set)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        self._open.set()
        self._server = await asyncio.start_server(self._connect, HOST, self.port)

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio logs a handler that ends by cancellation, as these do when the proxy stops.
        with contextlib.suppress(asyncio.CancelledError):
            await self._passage()
            try:
                far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
            except OSError:
                writer.close()
                return
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await self._passage()
                sink.write(data)
                await sink.drain()
        await self._passage()  # the end of a connection does not get through a cut either
        with contextlib.suppress(OSError):
            sink.close()

    async def _passage(self) -> None:
        if not self._open.is_set():
            self.held += 1
            await self._open.wait()


class StoreFront:
    """An HTTP proxy in front of a Qdrant server or the embedded store.

    `mode`: "ok", "away" (connections are reset), "slow" (answers come `delay_s` late), "busy" (429 with Retry-After),
    "half" (of a batch of writes, the first half is written; then the connection breaks). `counts` has how many requests
    each mode has met.
    """

    def __init__(self, target: int, delay_s: float = 2.0) -> None:
        self.mode: StoreMode = "ok"
        self.delay_s = delay_s
        self.counts: Counter[str] = Counter()
        self._target = target
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                front._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - names of the base class

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing: clients that are killed reset their connections."""

        self._server = Server((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="store-front")

    def __enter__(self) -> StoreFront:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        mode = self.mode
        if mode == "half":
            part = half_of(request.path, body)
            if part is not None:
                self.counts[mode] += 1
                self._forward(request, part)
                _reset(request)
                return
        elif mode != "ok":
            self.counts[mode] += 1
        if mode == "away":
            _reset(request)
        elif mode == "busy":
            _answer(request, 429, b'{"status":{"error":"Too many requests"}}', [("Retry-After", "1")])
        else:
            if mode == "slow":
                time.sleep(self.delay_s)
            answer = self._forward(request, body)
            if answer is None:
                _reset(request)
            else:
                _answer(request, *answer)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, list[tuple[str, str]]] | None:
        connection = http.client.HTTPConnection(HOST, self._target, timeout=30)
        try:
            headers = {name: value for name, value in request.headers.items()
                       if name.lower() not in {"content-length", "connection", "host"}}
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), [("Content-Type", answer.getheader("Content-Type") or "")]
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def half_of(path: str, body: bytes) -> bytes | None:
    """Return a batch of writes without its second half (the only point of a batch is kept); None for other requests."""
    if not path.split("?", maxsplit=1)[0].endswith("/points/batch"):
        return None
    batch = orjson.loads(body)
    points = [point for operation in batch["operations"] for point in operation["upsert"]["points"]]
    kept = {point["id"] for point in points[:max(1, len(points) // 2)]}
    for operation in batch["operations"]:
        operation["upsert"]["points"] = [p for p in operation["upsert"]["points"] if p["id"] in kept]
    batch["operations"] = [operation for operation in batch["operations"] if operation["upsert"]["points"]]
    return orjson.dumps(batch)


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
    with contextlib.suppress(OSError):
        request.send_response(status)
        for name, value in headers:
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def _reset(request: BaseHTTPRequestHandler) -> None:
    """End the connection with a reset and without an answer."""
    request.close_connection = True
    with contextlib.suppress(OSError):
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    request.connection.close()


def until(condition: Callable[[], bool], seconds: float, what: Callable[[], str] | str) -> float:
    """Wait for a condition; return the seconds it took. Raises AssertionError with `what` after `seconds`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what() if callable(what) else what}")
        time.sleep(0.1)
    return time.monotonic() - started
