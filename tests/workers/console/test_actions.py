"""What changes something: only with the token, only from the console's own pages, each with its audit lines."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from starlette.testclient import TestClient

from schemas.artifacts import Card, write_card
from schemas.deployments import Deployments
from schemas.messages import DeadLetter
from schemas.settings import ConsoleSettings, KafkaSettings, Settings
from schemas.topics import BEHAVIOUR_EVENTS, DEAD_LETTERS
from tests.workers.brokers import kill_broker, settings_for, start_broker
from tests.workers.console.filled import HOSTILE, filled
from tests.workers.console.pages import Page
from workers.console.pages import actions
from workers.console.server import create_app
from workers.kafka.outbox import Outbox, Output
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics

TOKEN = "t0ken-" + "🙂"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "_PAUSE_S", 0.0)


def client(home: Path, token: str = TOKEN, kafka: KafkaSettings | None = None) -> TestClient:
    settings = replace(Settings(), home=home, kafka=kafka or KafkaSettings(), console=ConsoleSettings(token=token))
    return TestClient(create_app(filled(), settings), base_url="http://localhost")


def audit(home: Path) -> list[dict[str, object]]:
    path = home / "audit.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.fixture
def fitted(tmp_path: Path) -> Deployments:
    out = Deployments(tmp_path)
    for version in ("m1", "m2"):
        with out.registry.publish(version) as folder:
            (folder / "items.json").write_text("[]")
            write_card(folder, Card(model_version=version, created_at=100.0, sequence=out.registry.next_sequence(),
                                    data_hash="", settings={}, split_time=0, files={}))
        out.fitted(version, 200.0)
    return out


def test_a_rollback_needs_the_token_and_is_in_the_audit_log(fitted: Deployments, tmp_path: Path):
    form = {"version": "m2", "reason": "clicks fell"}
    assert client(tmp_path, "").post("/models/rollback", data=form | {"token": ""}).status_code == 403
    for wrong in ("", "t0ken", TOKEN + "x", HOSTILE[0]):
        answer = client(tmp_path).post("/models/rollback", data=form | {"token": wrong})
        assert (answer.status_code, "The token is wrong" in answer.text) == (403, True)
    assert fitted.in_use().model_version == "m2"
    answer = client(tmp_path).post("/models/rollback", data=form | {"token": TOKEN})
    assert (answer.status_code, "In use: m1" in answer.text) == (200, True)
    Page(answer.text).check()
    assert fitted.in_use().model_version == "m1"
    assert (fitted.log()[-1].reason, fitted.log()[-1].author) == ("clicks fell", "console, testclient")
    lines = audit(tmp_path)
    assert [line["outcome"] for line in lines] == ["refused"] * 4 + ["begun", "done"]
    assert all(line["action"] == "rollback" and line["by"] == "testclient" for line in lines)
    assert TOKEN not in (tmp_path / "audit.jsonl").read_text()


def test_a_rollback_of_what_is_no_longer_in_use_changes_nothing(fitted: Deployments, tmp_path: Path):
    answer = client(tmp_path).post("/models/rollback", data={"version": "m1", "token": TOKEN})
    assert (answer.status_code, "came into use since" in answer.text) == (409, True)
    assert fitted.in_use().model_version == "m2"
    assert [line["outcome"] for line in audit(tmp_path)] == ["begun", "failed"]


@pytest.mark.parametrize("headers", [
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"},
    {"Origin": "null"}], ids=str)
def test_another_sites_page_changes_nothing_even_with_the_token(
    fitted: Deployments, tmp_path: Path, headers: dict[str, str],
):
    answer = client(tmp_path).post("/models/rollback", data={"version": "m2", "token": TOKEN}, headers=headers)
    assert answer.status_code == 403
    assert fitted.in_use().model_version == "m2"


def test_an_action_whose_audit_line_cannot_be_written_is_not_done(fitted: Deployments, tmp_path: Path):
    (tmp_path / "audit.jsonl").mkdir()
    quiet = TestClient(client(tmp_path).app, base_url="http://localhost", raise_server_exceptions=False)
    assert quiet.post("/models/rollback", data={"version": "m2", "token": TOKEN}).status_code == 500
    assert fitted.in_use().model_version == "m2"


def test_actions_are_no_links_and_large_forms_are_refused(fitted: Deployments, tmp_path: Path):
    for path in ("/models/rollback", "/dead-letters/replay"):
        assert client(tmp_path).get(path).status_code in (404, 405)
    answer = client(tmp_path).post("/models/rollback", data={"version": "m2", "token": TOKEN, "reason": "x" * 20_000})
    assert answer.status_code == 403
    answer = client(tmp_path).post("/models/rollback", content=b"token=%ff&" + b"a=1&" * 50)
    assert answer.status_code == 403
    assert fitted.in_use().model_version == "m2"


@pytest.mark.slow
def test_dead_letters_are_sent_again_one_or_all(tmp_path: Path):
    broker = start_broker("embedded", tmp_path)
    try:
        kafka = settings_for(broker)
        create_topics(kafka)
        letters = [DeadLetter(topic=BEHAVIOUR_EVENTS.name, partition=0, offset=1042 + n, reason=reason, role="streams",
                              value=base64.b64encode(value).decode(), failed_at=1.0)
                   for n, (reason, value) in enumerate((
                       ("user_id: missing", b"zero"), ("Invalid JSON", b"one"), ("user_id: missing", b"two")))]
        # The console's letter number 1 is the record behaviour-events/1/1043.
        letters[1] = letters[1].model_copy(update={"partition": 1})
        outbox = Outbox(kafka, "test")
        outbox.send([Output(DEAD_LETTERS, letter.topic, letter) for letter in letters])
        outbox.close()

        def sent() -> list[bytes | None]:
            return sorted(message.value() for message in read_all(kafka, [BEHAVIOUR_EVENTS.name]))

        there = client(tmp_path, kafka=kafka)
        assert there.post("/dead-letters/replay", data={"number": "1", "token": "no"}).status_code == 403
        assert sent() == []
        assert "1 record was sent" in there.post("/dead-letters/replay", data={"number": "1", "token": TOKEN}).text
        assert sent() == [b"one"]
        answer = there.post("/dead-letters/replay", data={"reason": "USER_ID", "token": TOKEN})
        assert "2 records were sent" in answer.text
        assert sent() == [b"one", b"two", b"zero"]
        for nothing in ({"reason": "no such"}, {"number": "99"}, {"number": "x" * 100}):
            assert there.post("/dead-letters/replay", data=nothing | {"token": TOKEN}).status_code == 409
        assert [line["outcome"] for line in audit(tmp_path)] == [
            "refused", "begun", "done", "begun", "done", *["begun", "failed"] * 3]

        tenant = replace(kafka, prefix="shop.")
        create_topics(tenant)
        outbox = Outbox(tenant, "test")
        theirs = letters[0].model_copy(update={"topic": tenant.full(BEHAVIOUR_EVENTS.name)})
        outbox.send([Output(DEAD_LETTERS, theirs.topic, theirs)])
        outbox.close()
        answer = client(tmp_path, kafka=tenant).post("/dead-letters/replay", data={"token": TOKEN})
        assert "1 record was sent" in answer.text
        assert [message.value() for message in read_all(tenant, [BEHAVIOUR_EVENTS.name])] == [b"zero"]
        assert sent() == [b"one", b"two", b"zero"], "the other system's topics are untouched"
    finally:
        kill_broker(broker)
