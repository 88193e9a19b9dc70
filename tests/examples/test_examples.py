"""Every example runs as its docstring says, against the real thing, and prints what it promises."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from tests.examples.conftest import ROOT, World
from tests.system.stack import Stack
from workers.supervision.broker import free_port

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SLOW = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    said = ast.get_docstring(ast.parse(text)) or ""
    commands = [line for line in said.splitlines() if line.startswith("    ")]
    assert len(text.splitlines()) <= 100
    assert len(commands) == 2, "the two commands to run it"
    assert path.stem in "".join(commands)
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(), "the README links it"
    options = set(re.findall(r"--[a-z]+", " ".join(line for line in commands if path.name in line)))
    assert options <= set(re.findall(r"--[a-z]+", text.split('"""', 2)[2])), "options of the commands are there"


class Chat(BaseHTTPRequestHandler):
    """OpenAI's chat completions: answers with keywords made of the question's own words."""

    asked: ClassVar[list[dict]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Chat.asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        words = re.findall(r"[a-z]{4,}", body["messages"][-1]["content"].lower())[-4:]
        answer = json.dumps({
            "id": "1", "object": "chat.completion", "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop",
                         "message": {"role": "assistant", "content": ", ".join(dict.fromkeys(words))}}],
            "usage": {"prompt_tokens": 70, "completion_tokens": 9, "total_tokens": 79}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Chat.asked.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_own_llm_asks_the_server_once_per_item_and_keeps_the_answers(world: World, chat: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret")
    command = "own_llm", "--url", chat, "--model", "mine", "--data", str(world.data), "--items", "12"
    said = world.run(*command, FRESHET_WRITER_API_KEY_FILE=str(key))
    assert "12 items are described in" in said
    assert re.search(r"^  The \w+ \w+ i\d+: \w+", said, re.MULTILINE), said
    assert "sk-secret" not in said
    assert len(Chat.asked) == 12
    assert {(body["path"], body["model"], body["key"]) for body in Chat.asked} == {
        ("/v1/chat/completions", "mine", "Bearer sk-secret")}
    assert "12 were answered before" in world.run(*command)
    assert len(Chat.asked) == 12, "what is answered is not asked again"


class TestOffline:
    """Without a service: each fits or measures for itself."""

    pytestmark = SLOW

    def test_own_csv_compares_policies(self, fitted: World) -> None:
        said = fitted.run("own_csv", "--data", str(fitted.data), "--events", "120", "--policies", "never,once")
        assert "what pays" in said
        rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("never ", "once "))}
        assert rows["never"][1] == "0"
        assert int(rows["once"][1]) > 0

    def test_own_backbone_is_measured_beside_the_reference(self, world: World) -> None:
        said = world.run("own_backbone", "--data", str(world.data), "--knowledge", "--events", "60")
        assert "gru on data" in said
        assert "gru+lwgr on data" in said
        assert said.count("NDCG@10 over its reference: ") == 2

    def test_knowledge_walk_goes_from_request_to_trust(self, fitted: World) -> None:
        said = fitted.run("knowledge_walk", WALK_DATA=str(fitted.data))
        assert "cold_start" in said
        assert "3 vectors of 16" in said
        assert re.search(r"^ 10  The \w+", said, re.MULTILINE), said
        assert re.search(r"^trust [01]\.\d\d after \d+ events", said, re.MULTILINE), said


class TestWithService:
    """Against one running stack."""

    pytestmark = SLOW

    def test_kafka_python_sends_events_and_prints_the_list_that_answers(self, fitted: World, stack: Stack) -> None:
        said = fitted.run("kafka_python", "--bootstrap", stack.kafka.bootstrap, "--user", "example",
                          "--items", "i1,i6,i11,i16", "--seconds", "60")
        assert "user example, 4 events" in said
        shown = re.findall(r"^ *\d+ [ +] (i\d+)$", said, re.MULTILINE)
        assert len(set(shown)) == 10
        assert not {"i1", "i6", "i11", "i16"} & set(shown)

    def test_fastapi_service_shows_a_users_newest_list(self, fitted: World, stack: Stack) -> None:
        stack.produce([{"user_id": "web", "item_id": f"i{number}", "event_time": 1_700_000_000 + number}
                       for number in range(3)])
        port = free_port()
        environ = os.environ | {"BOOTSTRAP": stack.kafka.bootstrap, "PYTHONPATH": str(ROOT)}
        served = subprocess.Popen([sys.executable, "-m", "uvicorn", "--app-dir", "examples", "fastapi_service:app",
                                   "--port", str(port), "--log-level", "warning"], cwd=ROOT, env=environ)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                def events() -> int:
                    try:
                        answer = client.get("/users/web/recommendations", params={"most": 4})
                    except httpx.TransportError:  # it starts
                        return 0
                    return answer.json()["events"] if answer.status_code == 200 else 0

                stack.until(lambda: events() == 3)
                found = client.get("/users/web/recommendations", params={"most": 4}).json()
                assert len(set(found["items"])) == 4
                assert client.get("/users/nobody/recommendations").status_code == 404
        finally:
            served.terminate()
            served.wait(20)


def test_the_service_keeps_the_list_with_the_most_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from fastapi_service import Lists  # type: ignore[import-not-found]

    lists = Lists("nowhere")
    for count, item in ((2, "b"), (1, "a"), (2, "c")):
        lists.take(json.dumps({"user_id": "u", "count": count, "ranked_at": count + len(item), "items": [
            {"item_id": item}]}).encode())
    assert lists.of("u")["items"] == [{"item_id": "c"}]
    assert lists.of("v") is None
    lists.drop("u")
    assert lists.of("u") is None
    lists.take(json.dumps({"user_id": "u", "count": 1, "ranked_at": 9.0, "items": []}).encode())
    assert lists.of("u")["count"] == 1, "of a new user"
