"""An HTTP proxy before a store that answers as busy, slow, old and broken servers do."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fault:
    """What the proxy does with one request, instead of passing it on and its answer back.

    Args:
        status, headers, body: the answer; status None = the store's own.
        delay_s: before the answer.
        cut: "before" = the connection is reset and the store never sees the request, "after" = it does, and the answer
            is lost, "middle" = half of the answer comes, "unlabelled" = the same, without a length that tells,
            "trickle" = a byte every 50 ms.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"status": {"error": "made up"}}'
    delay_s: float = 0.0
    cut: str = ""


class Proxy:
    """Passes requests to `upstream`, with its `key`.

    `plan` gets method and path of each request and may return a `Fault` for it.
    """

    def __init__(self, upstream: str, key: str) -> None:
        self.upstream = urlsplit(upstream)
        self._key = key
        self.plan: Callable[[str, str], Fault | None] = lambda method, path: None
        self.seen: list[tuple[str, str, float]] = []  # method, path, monotonic time
        self.faults = 0
        self.keys: list[str | None] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

            def _any(self) -> None:
                proxy._answer(self)

            do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815 - the names that http.server calls

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def times(self, n: int, fault: Fault, path: str = "") -> None:
        """Do `fault` to the next `n` requests whose path contains `path`, then to none."""
        left = [fault] * n
        self.plan = lambda _, where: left.pop() if left and path in where else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.seen.append((request.command, request.path, time.monotonic()))
        self.keys.append(request.headers.get("api-key"))
        fault = self.plan(request.command, request.path)
        if fault is None:
            self._send(request, *self._ask(request, body))
            return
        self.faults += 1
        time.sleep(fault.delay_s)
        if fault.cut == "before":
            request.connection.close()
            request.close_connection = True
            return
        if fault.status is None:
            status, headers, answer = self._ask(request, body)
        else:
            status, headers, answer = fault.status, fault.headers, fault.body
        if fault.cut == "after":
            request.connection.close()
            request.close_connection = True
        elif fault.cut == "trickle":
            self._send(request, status, headers, b"", len(answer))
            for byte in answer:
                request.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif fault.cut:
            self._send(request, status, headers, answer[: len(answer) // 2],
                       len(answer) if fault.cut == "middle" else None)
            request.close_connection = True
        else:
            self._send(request, status, headers, answer)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.upstream.hostname, self.upstream.port, timeout=20)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "api-key")}
        headers["api-key"] = self._key
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, {"Content-Type": "application/json"}, answer.read()
        finally:
            connection.close()

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes,
              length: int | None = -1) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if length is None:
            request.send_header("Connection", "close")
        else:
            request.send_header("Content-Length", str(len(body) if length == -1 else length))
        request.end_headers()
        request.wfile.write(body)
