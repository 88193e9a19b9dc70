"""The report of an erasure: what the home holds of a user, and what is said when roles do not run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from schemas.messages import Erasure
from schemas.settings import Settings, to_environ
from schemas.topics import ERASURES
from tests.workers.brokers import kill_broker, settings_for, start_broker
from workers.cli import app
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics, keeping_times
from workers.operating.forgetting import ErasureReport, StillHeld, _home, lines_of


def test_the_home_keeps_the_texts_of_others_and_names_what_it_cannot_erase(tmp_path: Path):
    texts = tmp_path / "knowledge" / "users.jsonl"
    texts.parent.mkdir()
    others = [b'{"user_id": "annette", "text": "ann"}\n', b"not JSON, by hand: ann\n", b"[1]\n"]
    texts.write_bytes(b'{"user_id": "ann", "events": 2}\n' + b"".join(others) + b'{"user_id":"ann","events":3}\n')
    (tmp_path / "streams" / "aside-old-1").mkdir(parents=True)
    for version, users in (("m1", ["ann", "bob"]), ("m2", ["bob"])):
        folder = tmp_path / "models" / version
        folder.mkdir(parents=True)
        (folder / "users.json").write_bytes(orjson.dumps(users))
    report = ErasureReport("ann")
    _home(tmp_path, "ann", report)
    assert texts.read_bytes() == b"".join(others)
    assert report.removed == {"home": f"2 texts in {texts}"}
    assert "aside-old-1" in report.notes[0]
    assert ("m1" in report.notes[1], "m2" in report.notes[1]) == (True, False)
    again = ErasureReport("ann")
    _home(tmp_path, "ann", again)
    assert again.removed == {}


def test_the_report_says_what_was_found_and_what_is_left():
    report = ErasureReport("ann", {"store": "knowledge"}, held=[
        StillHeld("behaviour-events", 86_400.0, "events"), StillHeld("recommendations", None, "older records")])
    assert lines_of(report, lambda at: f"day {at / 86_400:g}") == [
        "store: knowledge removed", "kept by retention, and read by no role again:",
        "  behaviour-events: events, at the latest until day 1", "  recommendations: older records"]
    assert lines_of(ErasureReport("ann"), str)[0] == "nothing was known of this user"
    waiting = lines_of(ErasureReport("ann", late=["knowledge"], back=["recommendations"]), str)
    assert waiting[0] == "nothing is removed yet"
    assert "not done yet: knowledge" in waiting[1]
    assert "came back: recommendations" in waiting[2]


@pytest.mark.slow
def test_an_erasure_waits_for_roles_that_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broker = start_broker("embedded", tmp_path)
    try:
        kafka = replace(settings_for(broker), prefix="shop-", partitions=2)
        for name, value in to_environ(Settings(home=tmp_path / "home", kafka=kafka)).items():
            monkeypatch.setenv(name, value)
        early = CliRunner().invoke(app, ["forget", "ann"])
        assert "there is no topic shop-erasures" in str(early.exception)
        create_topics(kafka)
        told = CliRunner().invoke(app, ["forget", "ann", "--wait", "0.5"])
        assert told.exit_code == 1, told.output
        assert "not done yet: streams, ranking, knowledge, guard" in told.output
        (record,) = read_all(kafka, [ERASURES.name])
        assert (record.topic(), record.key()) == ("shop-erasures", b"ann")
        assert Erasure.model_validate_json(record.value()).user_id == "ann"
        assert keeping_times(kafka, [ERASURES.name])[ERASURES.name] >= 7 * 86_400
    finally:
        kill_broker(broker)
