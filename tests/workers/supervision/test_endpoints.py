"""The small server: what it answers, ports that are taken, faults in what it shows."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import orjson
import pytest

from schemas.errors import FreshetError
from schemas.liveness import Progress
from schemas.settings import HealthSettings, MetricsSettings, Settings
from workers.supervision import endpoints
from workers.supervision.broker import free_port
from workers.supervision.endpoints import Door, Endpoints, Reply
from workers.supervision.healthz import PORTS, HealthServer, role_server


def get(port: int, path: str) -> tuple[int, bytes, str]:
    try:
        answer = urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
    except HTTPError as error:
        return error.code, error.read(), error.headers["Content-Type"]
    return answer.status, answer.read(), answer.headers["Content-Type"]


def watched(home: Path, health: int = 0) -> Settings:
    return replace(Settings(), home=home, metrics=MetricsSettings(port=free_port() - 1),
                   health=HealthSettings(port=health))


def test_a_function_that_fails_is_a_500_and_the_server_goes_on() -> None:
    door = Door("127.0.0.1", free_port(), "X")
    with Endpoints({"/bad": lambda: Reply(b"", good=bool(1 // 0)), "/good": lambda: Reply(b"{}"),
                    "/ill": lambda: Reply(b"{}", good=False)}, [door], required=True):
        assert [get(door.port, path)[0] for path in ("/bad", "/good", "/ill", "/else")] == [500, 200, 503, 404]


def test_a_taken_port_is_an_error_for_the_supervisor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FreshetError, match=f"cannot listen on 127.0.0.1:{port}.*choose another port with ASKED"):
            Endpoints({"/x": lambda: Reply(b"")}, [Door("127.0.0.1", port, "ASKED")], required=True).start()


def test_a_taken_port_ends_no_role_which_listens_when_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_AGAIN_S", 0.05)
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with Endpoints({"/x": lambda: Reply(b"1")}, [Door("127.0.0.1", port, "ASKED")], required=False):
        taken.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                assert get(port, "/x")[:2] == (200, b"1")
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)


def test_nothing_listens_unless_asked(tmp_path: Path) -> None:
    settings = replace(Settings(), home=tmp_path)
    for server in (role_server(settings, "guard"), HealthServer(settings)):
        with server:
            assert not server._thread.is_alive()


def test_a_role_answers_for_itself(tmp_path: Path) -> None:
    settings = watched(tmp_path)
    port = settings.metrics.port + PORTS["guard"]
    progress = Progress(tmp_path, "guard")
    progress.clear()
    with role_server(settings, "guard"):
        assert [get(port, path)[0] for path in ("/livez", "/readyz", "/healthz")] == [200, 503, 503]
        progress.ready()
        progress.write(0, force=True)
        assert [get(port, path)[0] for path in ("/livez", "/readyz", "/healthz")] == [200, 200, 200]
        progress.waiting("store", 3)
        status, body, _ = get(port, "/healthz")
        assert (status, orjson.loads(body)["reason"]) == (503, "waiting for the store")
        assert get(port, "/readyz")[0] == 200, "it has its partitions"
        progress.end(clean=False)
        assert get(port, "/readyz")[0] == 503
        status, body, kind = get(port, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert b"process_resident_memory_bytes" in body


def test_roles_have_ports_of_their_own_and_the_supervisor_answers_on_both_of_its(tmp_path: Path) -> None:
    assert sorted(PORTS.values()) == list(range(len(PORTS)))
    settings = watched(tmp_path, health=free_port())
    with HealthServer(settings):
        for port in (settings.health.port, settings.metrics.port):
            status, body, _ = get(port, "/healthz")
            assert (status, orjson.loads(body)["state"]) == (503, "not running")
            assert [get(port, path)[0] for path in ("/readyz", "/livez", "/metrics")] == [503, 200, 200]
