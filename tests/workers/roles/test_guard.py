"""The guard rolls a harmful version back once, and logs an error if it cannot."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from schemas.artifacts import Card, Registry, write_card
from schemas.calibration import Calibration
from schemas.codec import decode, encode
from schemas.deployments import Attempt, Deployments
from schemas.messages import Judgement, Margin, ModelUpdate
from schemas.settings import Settings, to_environ
from schemas.topics import JUDGEMENTS, MODEL_UPDATES
from tests.workers.brokers import ROOT, kill_broker, settings_for, start_broker
from workers.kafka.configuration import consumer, producer
from workers.kafka.topics import create_topics
from workers.roles.guard import Guard, cells

CALIBRATION = Calibration(
    min_history=2, ttl_s=1e6, drift_mean=0.5, drift_sd=0.2, drift_prior=10, drift_slack=0.5, drift_threshold=5,
    drift_false_alarm_every=500, margin_bound=1.0, epsilon=0.2)


def publish(home: Path, version: str, created_at: float = 0.0) -> None:
    """Publish a version and make it the current one; each is newer on disk than the one before."""
    registry = Registry(home)
    with registry.publish(version) as folder:
        (folder / "calibration.json").write_text(CALIBRATION.model_dump_json())
        write_card(folder, Card(
            model_version=version, created_at=created_at, data_hash="", split_time=0, files={},
            settings={"fit": {"instructions": 2, "codes": 4}}))
    age = len(registry.versions())
    os.utime(registry.folder / version / "card.json", (1e9 + age, 1e9 + age))
    registry.select(version)


def guard(home: Path) -> Guard:
    return Guard(Deployments(home), home / "guard" / "evidence.msgpack", 1.0, 0.01, 8, clock=lambda: 77.0)


def judgements(version: str, value: float, users: range = range(60), codes: tuple[int, ...] = (0, 1)
               ) -> list[Judgement]:
    return [
        Judgement(user_id=f"u{user}", model_version="base", knowledge_model_version=version, codes=list(codes),
                  margins=[Margin(event_id="e", item_id="i", count=1, value=value, knowledge_version=1)],
                  event_time=1.0, judged_at=2.0)
        for user in users]


def updates(out: list[list]) -> list[ModelUpdate]:
    return [one.message for part in out for one in part]


def test_a_harmful_version_is_rolled_back_to_the_one_before(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        publish(tmp_path, version)
    watch = guard(tmp_path)
    assert updates(watch(judgements("v1", 0.3))) == []
    (update,) = updates(watch(judgements("v2", -0.8, range(100, 160))))
    assert (update.model_version, update.adapter, update.published_at) == ("v1", None, 77.0)
    assert Registry(tmp_path).current() == "v1", "a restart keeps it"
    assert updates(watch(judgements("v2", -0.8, range(200, 260)))) == [], "once"
    assert watch.counters()["rollbacks"] == 1
    assert watch.counters()["versions"]["v2"]["harmful"]


def test_a_harmful_adapter_is_taken_off_and_its_knowledge_withdrawn(tmp_path: Path) -> None:
    publish(tmp_path, "v1")
    deployments = Deployments(tmp_path)
    deployments.publish_adapter(
        Attempt(name="a", base="v1", created_at=5.0, published=True, reason="better"), 5.0)
    (update,) = updates(guard(tmp_path)(judgements("v1+a", -0.8)))
    assert (update.model_version, update.adapter, update.withdrawn) == ("v1", None, ["v1+a"])
    assert deployments.log()[-1].reason.startswith("guard: harm over ")


@pytest.mark.parametrize("damaged", [False, True])
def test_without_an_intact_earlier_version_it_logs_an_error_and_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bool,
) -> None:
    if damaged:
        publish(tmp_path, "v0")
        (Registry(tmp_path).folder / "v0" / "calibration.json").write_text("{}")
    publish(tmp_path, "v1")
    watch = guard(tmp_path)
    with caplog.at_level(logging.ERROR):
        assert updates(watch(judgements("v1", -0.8))) == []
    assert "model v1 cannot be rolled back" in caplog.text
    assert Registry(tmp_path).current() == "v1"
    assert watch.counters()["rollbacks_failed"] == 1
    assert updates(watch(judgements("v1", 0.2, range(60, 70)))) == []


def test_harm_by_an_unregistered_version_announces_the_version_in_use_again(tmp_path: Path) -> None:
    publish(tmp_path, "v1")
    (update,) = updates(guard(tmp_path)(judgements("by-hand", -0.8)))
    assert (update.model_version, update.withdrawn) == ("v1", ["by-hand"])


def test_a_version_that_did_harm_before_is_skipped(tmp_path: Path) -> None:
    for version in ("v1", "v2", "v3"):
        publish(tmp_path, version)
    watch = guard(tmp_path)
    assert [u.model_version for u in updates(watch(judgements("v2", -0.8)))] == ["v3"], "announces the version in use"
    (update,) = updates(watch(judgements("v3", -0.8, range(100, 160))))
    assert update.model_version == "v1"


def test_a_version_found_harmful_and_chosen_again_is_tested_from_the_start(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        publish(tmp_path, version)
    watch, deployments = guard(tmp_path), Deployments(tmp_path)
    (back,) = updates(watch(judgements("v2", -0.8)))
    watch.apply(back)
    watch.apply(deployments.select("v2", 100.0, "ann"))
    assert not watch.counters()["versions"].get("v2", {}).get("harmful")
    assert updates(watch(judgements("v2", -0.8))) == [], "margins that were counted before do not count again"
    (again,) = updates(watch(judgements("v2", -0.8, range(100, 160))))
    assert (again.model_version, again.withdrawn) == ("v1", ["v2"])
    assert [line.author for line in deployments.log()] == ["guard", "ann", "guard"]


def test_the_bounds_are_those_of_the_version_in_use(tmp_path: Path) -> None:
    publish(tmp_path, "v1")
    watch, deployments = guard(tmp_path), Deployments(tmp_path)
    with deployments.registry.publish("v2") as folder:
        (folder / "calibration.json").write_text(CALIBRATION.model_copy(update={"margin_bound": 4.0}).model_dump_json())
        write_card(folder, Card(model_version="v2", created_at=0.0, data_hash="", split_time=0, files={},
                                settings={"fit": {"instructions": 3, "codes": 5}}))
    watch.apply(deployments.fitted("v2", 100.0))
    assert (watch._bound, watch._cells) == (4.0, 15)


def test_a_harmful_codeword_is_named_and_nothing_is_rolled_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    for version in ("v1", "v2"):
        publish(tmp_path, version)
    watch = guard(tmp_path)
    out = []
    for user in range(160):
        bad = user % 5 == 0
        out += updates(watch(judgements("v2", -0.9 if bad else 0.4, range(user, user + 1), (3 if bad else 1, 0))))
    assert out == []
    assert "codeword 3 of instruction 0 of model v2 does harm" in caplog.text
    assert watch.counters()["versions"]["v2"]["harmful_codes"] == ["0:3"]


def test_evidence_survives_a_restart_and_damaged_evidence_is_ignored(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        publish(tmp_path, version)
    first = guard(tmp_path)
    assert updates(first(judgements("v2", -0.5, range(8)))) == []
    first.keep(force=True)
    kept = (tmp_path / "guard" / "evidence.msgpack").stat().st_mtime_ns
    first.keep(force=True)
    assert (tmp_path / "guard" / "evidence.msgpack").stat().st_mtime_ns == kept, "nothing new"
    second = guard(tmp_path)
    assert second.pools == first.pools
    assert updates(second(judgements("v2", -0.5, range(8)))) == [], "delivered again"
    assert second.pools.versions["v2"].overall.n == 8
    (tmp_path / "guard" / "evidence.msgpack").write_bytes(b"\x00torn")
    assert guard(tmp_path).pools.versions == {}


def test_evidence_is_written_although_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.roles.guard._KEEP_EVERY_S", 0.0)
    publish(tmp_path, "v1")
    times = [1e9, *[1e9 - 3600.0] * 9]
    file = tmp_path / "guard" / "evidence.msgpack"
    watch = Guard(Deployments(tmp_path), file, 1.0, 0.01, 8, clock=lambda: times.pop(0))
    watch(judgements("v1", 0.1, range(8)))
    watch.keep()
    assert file.exists()


def test_codewords_are_counted_over_all_instructions(tmp_path: Path) -> None:
    publish(tmp_path, "v1")
    assert cells(Registry(tmp_path).open()) == 8


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_role_rolls_back_harm_planted_in_half_of_the_users(tmp_path: Path) -> None:
    broker = start_broker("embedded", tmp_path)
    settings = replace(Settings(), home=tmp_path / "home", kafka=settings_for(broker))
    for version in ("v1", "v2"):
        publish(settings.home, version)
    create_topics(settings.kafka)
    sender = Producer(producer(settings.kafka))
    for judgement in (*judgements("v2", -0.3, range(0, 200, 2)), *judgements("v1", 0.3, range(1, 200, 2))):
        sender.produce(JUDGEMENTS.name, encode(judgement), key=judgement.user_id)
    assert sender.flush(20) == 0
    with (tmp_path / "guard.log").open("wb") as out:
        child = subprocess.Popen([sys.executable, "-m", "workers.cli", "role", "guard"], cwd=ROOT, stderr=out,
                                 env={**os.environ, **to_environ(settings)})
    reader = Consumer(consumer(settings.kafka, "none"))
    reader.assign([TopicPartition(MODEL_UPDATES.name, 0, OFFSET_BEGINNING)])
    try:
        record, deadline = None, time.monotonic() + 60
        while record is None and time.monotonic() < deadline:
            got = reader.poll(0.2)
            record = got if got is not None and got.error() is None else None
        assert record is not None, (tmp_path / "guard.log").read_text()
        assert decode(ModelUpdate, record.value()).model_version == "v1"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    finally:
        reader.close()
        child.kill()
        kill_broker(broker)
    assert "rolled back from model v2 to v1" in (tmp_path / "guard.log").read_text()
    assert json.loads((settings.home / "run" / "guard.json").read_text())["rollbacks"] == 1
    assert (settings.home / "guard" / "evidence.msgpack").is_file()


def test_an_erased_user_is_forgotten_on_disk_and_counts_from_the_start(tmp_path: Path) -> None:
    publish(tmp_path, "v1")
    watch = guard(tmp_path)
    watch(judgements("v1", 0.3, range(5)))
    assert watch.forget(["u3", "nobody"]) == []
    file = tmp_path / "guard" / "evidence.msgpack"
    assert b"u3" not in file.read_bytes()
    assert b"u4" in file.read_bytes()
    watch(judgements("v1", 0.3, range(3, 5)))
    assert watch.counters()["versions"]["v1"]["margins"] == 6, "u3 begins again, u4 was judged"
