"""A server that speaks chat completions over HTTP and answers by script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-0123456789"


def completion(text: Any, read: int = 100, written: int = 20, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": read, "completion_tokens": written}}


def keywords_for(input_: str) -> str:
    return f"about {input_[:20].lower()}, soft, mild"


class Stub:
    """Answers each request by `answer(request number, user message)`: (status, headers, body), body an object or bytes.

    The default is keywords about the user message.
    """

    def __init__(self, answer: Callable[[int, str], tuple[int, dict[str, str], Any]] | None = None) -> None:
        self.answer = answer or (lambda _, user: (200, {}, completion(keywords_for(user.removeprefix("Item: ")))))
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.running = self.most_running = 0
        self.pause_s = 0.0
        lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(stub.requests)
                    stub.requests.append({"path": self.path, "key": self.headers.get("Authorization"), "body": body})
                    stub.times.append(time.monotonic())
                    stub.running += 1
                    stub.most_running = max(stub.running, stub.most_running)
                time.sleep(stub.pause_s)
                status, headers, answer = stub.answer(number, body["messages"][1]["content"])
                with lock:
                    stub.running -= 1
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    for name, value in ({"Content-Length": str(len(data))} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):  # the client has given up
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def inputs(self) -> list[str]:
        return [request["body"]["messages"][1]["content"] for request in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
