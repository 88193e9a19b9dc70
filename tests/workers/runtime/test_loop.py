"""The worker loop on real brokers: nothing is lost, whatever dies."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import orjson
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from schemas.codec import encode
from schemas.messages import DeadLetter, KnowledgeRequest, KnowledgeUpdate
from schemas.settings import KafkaSettings, Settings, WatchdogSettings, to_environ
from schemas.topics import DEAD_LETTERS, KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES
from tests.workers.brokers import BROKERS, ROOT, KafkaNode, kill_broker, needs_kafka, settings_for, start_broker
from workers.kafka.configuration import consumer, producer
from workers.kafka.lag import lag
from workers.kafka.topics import create_topics, partitions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(params=BROKERS)
def kafka(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KafkaSettings]:
    broker = start_broker(request.param, tmp_path)
    settings = settings_for(broker)
    create_topics(settings)
    yield settings
    for process in Worker.started:
        process.kill()
    kill_broker(broker)


class Worker:
    """An echo worker process."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(
        self, kafka: KafkaSettings, home: Path, mode: str, batch: int = 64, stall_s: float = 60.0,
        start_s: float = 120.0, load_s: float = 0.0,
    ) -> None:
        self.settings = Settings(home=home, kafka=kafka, watchdog=WatchdogSettings(stall_s=stall_s, start_s=start_s))
        self.home = home
        self._command = [sys.executable, "-m", "tests.workers.runtime.echo_worker", mode, str(batch), str(load_s)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, env={**os.environ, **to_environ(self.settings)},
            stderr=(self.home / "echo.log").open("ab"))
        self.started.append(self.process)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        while not (self.home / "run" / "echo.ready").is_file():
            assert self.process.poll() is None, (self.home / "echo.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def progress(self) -> dict[str, object]:
        return orjson.loads((self.home / "run" / "echo.json").read_bytes())

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def request(user: str, version: int = 1) -> KnowledgeRequest:
    return KnowledgeRequest(
        user_id=user, version=version, reason="drift", history=["a"], count=3, event_id="e", event_time=1.0,
        caused_at=1.0, requested_at=1.0)


def produce(kafka: KafkaSettings, requests: list[KnowledgeRequest | bytes]) -> None:
    sender = Producer(producer(kafka))
    for one in requests:
        value = one if isinstance(one, bytes) else encode(one)
        sender.produce(KNOWLEDGE_REQUESTS.name, value, key=b"poison" if isinstance(one, bytes) else one.user_id)
    assert sender.flush(20) == 0


def collect(kafka: KafkaSettings, topic: str, until: int, seconds: float = 60.0) -> list[bytes]:
    """Return the values of a topic once `until` distinct ones are there."""
    reader = Consumer(consumer(kafka, "none"))
    number = partitions(kafka, [topic])[topic]
    reader.assign([TopicPartition(topic, part, OFFSET_BEGINNING) for part in range(number)])
    values: list[bytes] = []
    deadline = time.monotonic() + seconds
    while len(set(values)) < until and time.monotonic() < deadline:
        values += [m.value() for m in reader.consume(500, 0.2) if m.error() is None]
    reader.close()
    return values


def wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def updated(values: list[bytes]) -> set[tuple[str, int]]:
    return {(u.user_id, u.version) for u in map(KnowledgeUpdate.model_validate_json, values)}


def test_kill_9_in_mid_batch_loses_nothing(kafka: KafkaSettings, home: Path) -> None:
    wanted = [request(f"u{i}") for i in range(300)] + [request("deadly")] + [request(f"v{i}") for i in range(300)]
    produce(kafka, list(wanted))
    worker = Worker(kafka, home, "dies")
    assert worker.process.wait(60) == -signal.SIGKILL
    worker.start()
    values = collect(kafka, KNOWLEDGE_UPDATES.name, len(wanted))
    assert updated(values) == {(r.user_id, 1) for r in wanted}
    assert worker.end() == 0
    assert sum(lag(kafka, "echo", [KNOWLEDGE_REQUESTS.name]).values()) == 0


def test_sigterm_finishes_commits_and_leaves(kafka: KafkaSettings, home: Path) -> None:
    worker = Worker(kafka, home, "plain")
    worker.wait_ready()
    produce(kafka, [request(f"u{i}") for i in range(50)])
    assert len(collect(kafka, KNOWLEDGE_UPDATES.name, 50)) == 50
    assert worker.end() == 0
    assert not (home / "run" / "echo.ready").exists()
    progress = worker.progress()
    assert (progress["processed"], progress["produced"], progress["ended"]) == (50, 50, "clean")
    worker.start()  # nothing is done twice after a clean end
    worker.wait_ready()
    produce(kafka, [request("later")])
    assert ("later", 1) in updated(collect(kafka, KNOWLEDGE_UPDATES.name, 51))
    assert worker.end() == 0
    assert len(collect(kafka, KNOWLEDGE_UPDATES.name, 52, seconds=2)) == 51


def test_poison_and_offenders_are_dead_lettered_and_the_rest_goes_on(kafka: KafkaSettings, home: Path) -> None:
    poison = [b"{", b"[]", b'{"user_id": 3}', b"\xff\x00"]
    produce(kafka, [request("a"), *poison, request("bad"), request("b")])
    worker = Worker(kafka, home, "chokes")
    assert updated(collect(kafka, KNOWLEDGE_UPDATES.name, 2)) == {("a", 1), ("b", 1)}
    letters = [DeadLetter.model_validate_json(v) for v in collect(kafka, DEAD_LETTERS.name, 5)]
    assert {base64.b64decode(x.value) for x in letters} == {*poison, encode(request("bad"))}
    (offender,) = [x for x in letters if b"bad" in base64.b64decode(x.value)]
    assert offender.reason == "RuntimeError: cannot digest this"
    assert {(x.topic, x.role) for x in letters} == {(KNOWLEDGE_REQUESTS.name, "echo")}
    assert worker.end() == 0


def test_a_step_that_always_fails_ends_the_worker_before_anything_is_buried(kafka: KafkaSettings, home: Path) -> None:
    produce(kafka, [request(f"u{n}") for n in range(500)])
    worker = Worker(kafka, home, "broken", batch=500)
    assert worker.process.wait(60) == 1
    assert "33 records in a row failed, the last with KeyError: 'always'" in (home / "echo.log").read_text()
    assert collect(kafka, DEAD_LETTERS.name, 1, seconds=2) == []
    sound = Worker(kafka, home, "plain")  # nothing was committed: it gets them all
    assert len(updated(collect(kafka, KNOWLEDGE_UPDATES.name, 500))) == 500
    assert sound.end() == 0


def test_waits_for_the_store_and_goes_on(kafka: KafkaSettings, home: Path) -> None:
    worker = Worker(kafka, home, "store", stall_s=2.0)  # waiting for the store is no stall
    worker.wait_ready()
    produce(kafka, [request(f"u{i}") for i in range(20)])
    time.sleep(6)
    assert worker.process.poll() is None
    assert worker.progress()["waits_for"] == "store"
    (home / "flag").touch()
    assert len(updated(collect(kafka, KNOWLEDGE_UPDATES.name, 20))) == 20
    assert worker.end() == 0
    assert collect(kafka, DEAD_LETTERS.name, 1, seconds=1) == []


def test_stopped_while_the_store_is_away_commits_nothing(kafka: KafkaSettings, home: Path) -> None:
    worker = Worker(kafka, home, "store")
    worker.wait_ready()
    produce(kafka, [request("u")])
    deadline = time.monotonic() + 30
    while worker.progress()["waits_for"] != "store":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert worker.end() == 0
    assert sum(lag(kafka, "echo", [KNOWLEDGE_REQUESTS.name]).values()) == 1


def test_loading_a_model_is_no_stall_and_drops_nothing(kafka: KafkaSettings, home: Path) -> None:
    worker = Worker(kafka, home, "loads", stall_s=2.0, load_s=8.0)
    worker.wait_ready()
    (home / "flag").touch()
    wait(lambda: worker.progress()["waits_for"] == "model")
    produce(kafka, [request(f"u{i}") for i in range(20)])
    assert len(updated(collect(kafka, KNOWLEDGE_UPDATES.name, 20))) == 20
    wait(lambda: worker.progress()["waits_for"] == "")
    assert worker.end() == 0


def test_a_model_that_is_never_loaded_ends_with_code_70(kafka: KafkaSettings, home: Path) -> None:
    worker = Worker(kafka, home, "loads", stall_s=3.0, start_s=30.0, load_s=3600.0)
    worker.wait_ready()
    (home / "flag").touch()
    wait(lambda: worker.progress()["waits_for"] == "model")
    produce(kafka, [request("u")])
    assert worker.process.wait(90) == 70


def test_a_hanging_step_ends_with_code_70(kafka: KafkaSettings, home: Path) -> None:
    worker = Worker(kafka, home, "hangs", stall_s=3.0)
    worker.wait_ready()
    produce(kafka, [request("u")])
    assert worker.process.wait(40) == 70
    assert "made no progress for 3 s" in (home / "echo.log").read_text()


def test_a_long_step_does_not_cost_the_membership(kafka: KafkaSettings, home: Path) -> None:
    """Two steps of 5 s against a session time-out of 3 s: nothing is fenced, nothing is done twice."""
    worker = Worker(kafka, home, "slow")
    worker.wait_ready()
    produce(kafka, [request("a"), request("b")])
    collect(kafka, KNOWLEDGE_UPDATES.name, 2)
    time.sleep(1)
    assert worker.end() == 0
    assert len(collect(kafka, KNOWLEDGE_UPDATES.name, 3, seconds=2)) == 2
    assert "fenced" not in (home / "echo.log").read_text()


def test_a_second_worker_joining_in_mid_batch_loses_nothing(kafka: KafkaSettings, home: Path, tmp_path: Path) -> None:
    first = Worker(kafka, home, "slow", batch=20)
    first.wait_ready()
    produce(kafka, [request(f"u{i}") for i in range(40)])
    time.sleep(1)
    (tmp_path / "second").mkdir()
    second = Worker(kafka, tmp_path / "second", "plain")
    second.wait_ready()
    assert len(updated(collect(kafka, KNOWLEDGE_UPDATES.name, 40, seconds=90))) == 40
    assert first.end() == 0
    assert second.end() == 0


@pytest.mark.kafka
@needs_kafka
def test_a_broker_killed_and_started_again_loses_nothing(home: Path, tmp_path: Path) -> None:
    broker = start_broker("kafka", tmp_path)
    assert isinstance(broker, KafkaNode)
    settings = settings_for(broker)
    create_topics(settings)
    worker = Worker(settings, home, "slow", batch=100)
    worker.wait_ready()
    produce(settings, [request(f"u{i}") for i in range(300)])
    time.sleep(3)  # a batch is in hand
    broker.kill()
    time.sleep(5)
    broker.start()
    assert len(updated(collect(settings, KNOWLEDGE_UPDATES.name, 300, seconds=100))) == 300
    assert worker.end() == 0
    assert sum(lag(settings, "echo", [KNOWLEDGE_REQUESTS.name]).values()) == 0
    broker.kill()
