"""A schema registry over HTTP for tests: the part of Confluent's interface that serializers and Freshet use.

confluent-kafka's own clients register schemas with it and look them up.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid5


class RegistryStub:
    """Schemas by subject and id. The attributes may be changed while it runs."""

    def __init__(self) -> None:
        self.schemas: list[dict[str, Any]] = []  # the id is the place + 1
        self.versions: dict[str, list[int]] = {}  # subject → ids
        self.asked: list[str] = []  # paths of GET
        self.user = ""  # user:password, "" = anybody
        self.fault: tuple[int, bytes] | None = None  # status and body that answer everything
        self.delay_s = 0.0
        self.serialized = True  # whether it knows format=serialized
        self.url = ""

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """Return the schema's id; the same schema has one."""
        schema = {"schema": schema["schema"], "schemaType": schema.get("schemaType") or "AVRO",
                  "references": schema.get("references") or []}
        if schema not in self.schemas:
            self.schemas.append(schema)
        found = self.schemas.index(schema) + 1
        if found not in self.versions.setdefault(subject, []):
            self.versions[subject].append(found)
        return found

    def guid(self, schema_id: int) -> str:
        return str(uuid5(UUID(int=0), str(schema_id)))

    def shown(self, schema_id: int, serialized: bool) -> dict[str, Any]:
        schema = dict(self.schemas[schema_id - 1])
        if schema["schemaType"] == "AVRO":
            del schema["schemaType"]  # as the real one leaves it out
        elif schema["schemaType"] == "PROTOBUF" and not (serialized and self.serialized):
            schema["schema"] = 'syntax = "proto3";\n'
        return schema | {"guid": self.guid(schema_id)}

    def answer(  # noqa: PLR0911
        self, method: str, path: str, query: dict[str, list[str]], body: dict[str, Any],
    ) -> tuple[int, Any]:
        serialized = query.get("format") == ["serialized"]
        match [unquote(part) for part in path.strip("/").split("/")]:
            case ["schemas", "types"]:
                return 200, ["JSON", "PROTOBUF", "AVRO"]
            case ["schemas", "ids", number]:
                if 0 < int(number) <= len(self.schemas):
                    return 200, self.shown(int(number), serialized)
                return 404, {"error_code": 40403, "message": f"Schema {number} not found"}
            case ["schemas", "guids", guid]:
                for one in range(1, len(self.schemas) + 1):
                    if self.guid(one) == guid:
                        return 200, self.shown(one, serialized)
                return 404, {"error_code": 40403, "message": "Schema not found"}
            case ["subjects", subject, "versions"] if method == "POST":
                found = self.register(subject, body)
                return 200, {"id": found, "guid": self.guid(found)}
            case ["subjects", subject] if method == "POST":
                found = self.register(subject, body)
                return 200, {"id": found, "version": self.versions[subject].index(found) + 1, "subject": subject,
                             **self.shown(found, serialized)}
            case ["subjects", subject, "versions", version]:
                ids = self.versions.get(subject, [])
                if 0 < int(version) <= len(ids):
                    found = ids[int(version) - 1]
                    return 200, {"id": found, "version": int(version), "subject": subject,
                                 **self.shown(found, serialized)}
                return 404, {"error_code": 40402, "message": "Version not found"}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}


@contextmanager
def registry() -> Iterator[RegistryStub]:
    """Yield a registry that answers at its `url`."""
    stub = RegistryStub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            asked = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.command == "GET":
                stub.asked.append(asked.path)
            time.sleep(stub.delay_s)
            wanted = "Basic " + base64.b64encode(stub.user.encode()).decode()
            if stub.fault is not None:
                self.send(*stub.fault)
            elif stub.user and self.headers.get("Authorization") != wanted:
                self.send(401, b'{"error_code":401,"message":"Unauthorized"}')
            else:
                status, content = stub.answer(
                    self.command, asked.path, parse_qs(asked.query), json.loads(body or b"{}"))
                self.send(status, json.dumps(content).encode())

        def send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client's patience has ended
                self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
