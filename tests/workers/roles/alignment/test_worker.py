from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from models.aligning.publication import PublicationDecision
from schemas.artifacts import Registry
from schemas.codec import encode
from schemas.deployments import Deployments
from schemas.messages import AlignmentSample, ModelUpdate, RankingRequest
from schemas.settings import AlignmentSettings, Settings, to_environ
from schemas.topics import ALIGNMENT_SAMPLES, MODEL_UPDATES, RANKING_REQUESTS, Topic
from tests.workers.brokers import ROOT, kill_broker, settings_for, start_broker
from tests.workers.fitted import CALIBRATION, N, publish, settings_in
from workers.cli import app
from workers.kafka.configuration import producer
from workers.kafka.lag import GroupLag
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics
from workers.roles.alignment.training_users import TrainingItems, choose_groups
from workers.roles.alignment.worker import GROUP, Aligner
from workers.roles.ranking.ranker import Ranker
from workers.runtime.gather_loop import StoppedError

SETTINGS = AlignmentSettings(samples=24, rank=2, steps=40, learning_rate=1e-2, bound=5.0, restraint=0.0)
CATALOGUE = TrainingItems({f"i{row}": row for row in range(N)}, 8)


def sample(user: str, seed: int = 0, model_version: str = "m1", **fields: object) -> AlignmentSample:
    """A user whose newest events are all of one item, which their knowledge ranks low."""
    rng = np.random.default_rng([seed, *user.encode()])
    history = [f"i{row}" for row in rng.integers(0, N, 6)] + ["i3"] * 5
    return AlignmentSample(
        user_id=user, history=history, item_id="i3", margin=-1.0, log_wealth=3.0, knowledge_version=1,
        model_version=model_version, event_time=1.0).model_copy(update=fields)


def request(user: str, history: list[str], **fields: object) -> RankingRequest:
    return RankingRequest(
        user_id=user, reason="event", history=history, count=len(history), knowledge_version=1, event_time=1.0,
        caused_at=1.0, requested_at=1.0).model_copy(update=fields)


def calm(users: int) -> list[RankingRequest]:
    rng = np.random.default_rng(7)
    return [request(f"calm{user}", [f"i{row}" for row in rng.integers(0, N, 10)]) for user in range(users)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = replace(settings_in(tmp_path_factory.mktemp("home")), alignment=SETTINGS)
    publish(settings, "m1")
    return settings


@pytest.fixture
def settings(published: Settings) -> Iterator[Settings]:
    yield published
    deployments = Deployments(published.home)
    (deployments.registry.folder / "deployed.jsonl").unlink(missing_ok=True)
    for folder in deployments.folder.glob("*"):
        folder.rename(published.home / f"old-{time.time_ns()}")


@pytest.fixture
def aligner(settings: Settings) -> Aligner:
    made = Aligner.load(settings, Registry(settings.home).open())
    made.requests = lambda: calm(30)
    return made


def test_no_user_is_both_trained_on_and_held_out() -> None:
    samples = [sample(f"u{user}") for user in range(30)]
    later = [request("u1", [*sample("u1").history, "i3", "i4", "i5", "i6", "i7"], count=99)]
    made = choose_groups(samples, [*calm(40), *later, request("u2", ["i1"] * 8)], CATALOGUE, 0.33)
    parts = (made.contradicted, made.held_contradicted, made.untouched, made.held_untouched)
    assert [len(part) for part in parts] == [20, 10, 20, 10]
    assert made.contradicted.sequences.item.max() < N
    everyone = choose_groups(samples, later, CATALOGUE, 0.99)  # u1 is held out: only later events count
    of = sorted(s.user_id for s in samples).index("u1")
    rows = slice(*everyone.held_contradicted.sequences.offsets[[of, of + 1]])
    first = int(everyone.held_contradicted.rows[of]) - rows.start
    assert everyone.held_contradicted.sequences.item[rows][first:].tolist() == [4, 5, 6, 7]


def test_untouched_users_have_knowledge_at_full_trust() -> None:
    wrong = [request("doubted", ["i1"] * 8, trust=0.9), request("without", ["i1"] * 8, knowledge_version=0),
             request("u1", ["i1"] * 8), request("short", ["i1"] * 3)]
    made = choose_groups([sample(f"u{user}") for user in range(30)], wrong, CATALOGUE, 0.33)
    assert len(made.untouched) + len(made.held_untouched) == 0


def test_hostile_samples_are_bounded_or_refused(aligner: Aligner) -> None:
    assert aligner.refuse(sample("a")) is None
    assert aligner.refuse(sample("a", model_version="m1+earlier")) is None
    assert aligner.refuse(sample("a", model_version="m7")) == "other_version"
    assert aligner.refuse(sample("a", item_id="nowhere")) == "unknown_items"
    assert aligner.refuse(sample("a", history=["x"] * 100 + ["i1"])) == "unknown_items"
    huge = sample("a", history=["i1", "x"] * 100_000)
    assert len(aligner.catalogue().known(huge.history)) <= 8 + 24


def test_a_published_adapter_is_used_until_a_rollback(aligner: Aligner, settings: Settings) -> None:
    plain = aligner.generate([["i1", "i2"]]).vectors
    samples = [sample(f"u{user}") for user in range(72)]  # 24 held out: enough for a sure gain
    (out,) = list(aligner(samples))
    assert [one.topic for one in out] == [MODEL_UPDATES]
    update = out[0].message
    assert isinstance(update, ModelUpdate)
    assert update.model_version.startswith("m1+")
    deployments = Deployments(settings.home)
    (attempt,) = deployments.attempts()
    assert attempt.published
    assert attempt.figures["contradicted_low"] > 0
    assert {path.name for path in (deployments.folder / attempt.name).iterdir()} == {
        "alignment.json", "adapter_config.json", "adapter_model.safetensors"}
    assert deployments.in_use() == update
    taught = aligner.generate([["i1", "i2"]]).vectors
    assert np.abs(taught - plain).max() > 1e-4
    ranker = Ranker.load(settings)
    ranker.apply(update)
    assert ranker.compatible(update.model_version)
    assert ranker.compatible("m1")

    aligner.clock = lambda: time.time() + 60
    (second,) = list(aligner(samples))  # starts from the first adapter
    assert deployments.attempts()[-1].started_from == update.model_version
    for message in (one.message for one in second):
        aligner.apply(message)
    if second:
        back = deployments.roll_back(time.time())
        assert (back.model_version, back.adapter) == (update.model_version, update.adapter)
    back = deployments.roll_back(time.time())
    assert (back.model_version, back.adapter) == ("m1", None)
    assert update.model_version in back.withdrawn
    aligner.apply(back)
    ranker.apply(back)
    np.testing.assert_array_equal(aligner.generate([["i1", "i2"]]).vectors, plain)
    assert not ranker.compatible(update.model_version)
    assert ranker.compatible("m1")


def test_a_rejected_attempt_says_why_and_changes_nothing(
    aligner: Aligner, settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FRESHET_HOME", str(settings.home))
    plain = aligner.generate([["i1", "i2"]]).vectors
    aligner.requests = list  # no untouched users to judge the adapter with
    assert list(aligner([sample(f"u{user}") for user in range(24)])) == [[]]
    (attempt,) = Deployments(settings.home).attempts()
    assert not attempt.published
    assert "0 held-out untouched users" in attempt.reason
    assert [path.name for path in (Deployments(settings.home).folder / attempt.name).iterdir()] == ["alignment.json"]
    assert Deployments(settings.home).in_use().adapter is None
    np.testing.assert_array_equal(aligner.generate([["i1", "i2"]]).vectors, plain)
    shown = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"}).output
    assert attempt.name in shown
    assert "held-out untouched users" in shown


def test_failed_training_is_recorded_as_an_attempt(
    aligner: Aligner, settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    aligner._knowledge.experts.gate.data.fill_(float("nan"))
    assert list(aligner([sample(f"u{user}") for user in range(24)])) == [[]]
    (attempt,) = Deployments(settings.home).attempts()
    assert "training failed: training diverged" in attempt.reason


def test_a_stopped_attempt_leaves_no_record(aligner: Aligner, settings: Settings) -> None:
    beats = []

    def stop() -> None:
        beats.append(1)
        if len(beats) > 9:
            raise StoppedError("stopped")

    aligner.beat = stop
    plain = aligner.generate([["i1", "i2"]]).vectors
    with pytest.raises(StoppedError):
        list(aligner([sample(f"u{user}") for user in range(24)]))
    assert not list(Deployments(settings.home).folder.iterdir())
    np.testing.assert_array_equal(aligner.generate([["i1", "i2"]]).vectors, plain)


def test_the_verdict_decides_whether_an_adapter_is_published(aligner: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    import models.aligning.align

    asked = []

    def no(contradicted: object, untouched: object, *, bound: float, clip: float) -> PublicationDecision:
        asked.append((bound, clip))
        return PublicationDecision(False, "because", {})

    monkeypatch.setattr(models.aligning.align, "decide_publication", no)
    assert aligner.attempt([sample(f"u{user}") for user in range(24)]) is None
    assert asked == [(SETTINGS.bound, CALIBRATION.margin_bound)]


CODE = "from workers.roles.alignment.worker import main; from schemas.settings import load; main(load())"


def wait(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_worker_gathers_trains_publishes_and_commits(tmp_path: Path) -> None:
    broker = start_broker("embedded", tmp_path)
    settings = replace(settings_in(tmp_path / "home"), kafka=settings_for(broker), alignment=SETTINGS)
    publish(settings, "m1")
    create_topics(settings.kafka)
    sender = Producer(producer(settings.kafka))
    run = settings.home / "run"

    def send(topic: Topic, messages: list) -> None:
        for message in messages:
            value = message if isinstance(message, bytes) else encode(message)
            sender.produce(topic.name, value, key=getattr(message, "user_id", "x"))
        assert sender.flush(20) == 0

    def progress() -> dict:
        return orjson.loads((run / "alignment.json").read_bytes())

    child = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=ROOT, env={**os.environ, **to_environ(settings)})
    try:
        wait((run / "alignment.ready").is_file)
        send(RANKING_REQUESTS, calm(30))
        send(ALIGNMENT_SAMPLES, [b"{", sample("z", model_version="m7"), *[sample("u0", seed) for seed in range(50)]])
        wait(lambda: progress()["gathered"] == 1 and progress()["dead_letters"] == 1)
        assert progress()["passed_over"] == {"other_version": 1}
        assert progress()["waits_for"] == "samples"
        sender.produce(ALIGNMENT_SAMPLES.name, None, key="u0")  # the user was erased
        assert sender.flush(20) == 0
        wait(lambda: progress()["gathered"] == 0)
        assert progress()["dead_letters"] == 1
        lag = GroupLag(settings.kafka, GROUP)
        parts = [(ALIGNMENT_SAMPLES.name, part) for part in range(settings.kafka.partitions)]
        assert sum(max(0, done) for done, _ in lag.offsets(parts).values()) == 0  # nothing committed yet
        send(ALIGNMENT_SAMPLES, [sample(f"u{user}") for user in range(24)])
        wait(lambda: progress()["attempts"] == 1 and progress()["processed"] >= 24)
        assert progress()["published"] == 1, progress()["last"]
        committed = sum(max(0, done) for done, _ in lag.offsets(parts).values())
        assert committed >= 24
        (record,) = read_all(settings.kafka, [MODEL_UPDATES.name])
        update = ModelUpdate.model_validate_json(record.value())
        assert update.adapter is not None
        assert update == Deployments(settings.home).in_use()
        lag.close()

        done = subprocess.run(
            [sys.executable, "-m", "workers.cli", "models", "rollback"], cwd=ROOT, check=False, capture_output=True,
            text=True, env={**os.environ, **to_environ(settings)})
        assert done.returncode == 0, done.stderr
        assert "m1" in done.stdout
        wait(lambda: progress()["model_version"] == "m1")
        child.terminate()
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
        kill_broker(broker)
