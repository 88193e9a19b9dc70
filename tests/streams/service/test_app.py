"""The role as a process on real brokers: kill -9, bad records, strays; its states are read back from RocksDB."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import orjson
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from safetensors.numpy import save_file

from schemas.artifacts import Card, Registry, write_card
from schemas.liveness import counters_file
from schemas.messages import DeadLetter, Judgement, KnowledgeRequest, KnowledgeUpdate, Margin, RankingRequest
from schemas.settings import EventSettings, KafkaSettings, RefreshSettings, Settings, StateSettings, to_environ
from streams.decisions.planner import Planner
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from streams.profile.state import UserState, loads
from streams.service.following import FOLLOW_EVERY_S
from streams.service.outbox import partition_of
from tests.streams.cases import CALIBRATION, DIM, N_ITEMS, item_vectors
from tests.workers.brokers import BROKERS, kill_broker, needs_kafka, start_broker
from workers.kafka.topics import create_topics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]
VECTORS = item_vectors()


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    running = start_broker(request.param, tmp_path)
    yield running.bootstrap
    kill_broker(running)


class Role:
    """The streams role and what a test does around it."""

    def __init__(self, bootstrap: str, home: Path) -> None:
        self.settings = Settings(
            home=home, kafka=KafkaSettings(bootstrap=bootstrap, session_timeout_s=6.0, partitions=2),
            events=EventSettings(earliest=date(1970, 1, 1)),
            state=StateSettings(history=10, seen=20, event_ids=32), refresh=RefreshSettings(min_history=3))
        create_topics(self.settings.kafka)
        if not Registry(home).versions():  # a second role on the same home goes on with its model
            publish_model(home)
        self.log = home / "streams.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, broken: str = "") -> None:
        """Start the process; `broken` is Python that makes something in it fail."""
        code = f"{broken}\nfrom schemas.settings import load; from streams.service.app import main; main(load())"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=out, stderr=out, cwd=ROOT,
                env=os.environ | to_environ(self.settings))

    def wait_ready(self, seconds: float = 60) -> None:
        self.wait((self.settings.home / "run" / "streams.ready").exists, seconds)

    def wait(self, done: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def end(self, sig: int) -> int:
        assert self.process is not None
        self.process.send_signal(sig)
        return self.process.wait(40)

    def committed(self, topic: str) -> int:
        consumer = Consumer({"bootstrap.servers": self.settings.kafka.bootstrap, "group.id": "freshet-streams"})
        try:
            parts = consumer.committed([TopicPartition(topic, p) for p in range(2)], timeout=10)
        except KafkaException:  # a young Kafka has no coordinator for the group yet
            return -1
        finally:
            consumer.close()
        return sum(max(0, part.offset) for part in parts)

    def read(self, topic: str) -> list[bytes]:
        """Return all values of a topic."""
        consumer = Consumer({"bootstrap.servers": self.settings.kafka.bootstrap, "group.id": "test",
                             "enable.auto.commit": False, "enable.partition.eof": True})
        numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        out: list[bytes] = []
        ended: set[int] = set()
        # Not up to the listed end offset: the embedded broker's is that of the last batch's first record.
        while len(ended) < len(numbers):
            message = consumer.poll(10)
            assert message is not None
            if message.error() is None:
                out.append(message.value())
            else:
                ended.add(message.partition())
        consumer.close()
        return out

    def states(self) -> dict[str, UserState]:
        """Return the states in RocksDB; the role must have ended."""
        import rocksdict

        out = {}
        for folder in (self.settings.home / "streams").glob("**/*.db"):
            db = rocksdict.Rdict(str(folder), options=rocksdict.Options(raw_mode=True),
                                 access_type=rocksdict.AccessType.read_only())
            out.update({key.decode(): loads(value) for key, value in db.items() if not key.startswith(b"__faust")})
            db.close()
        return out


def publish_model(home: Path, version: str = "m1", vectors: ItemVectors = VECTORS) -> None:
    with Registry(home).publish(version) as folder:
        (folder / "calibration.json").write_text(CALIBRATION.model_dump_json())
        (folder / "items.json").write_bytes(orjson.dumps(list(vectors.rows)))
        save_file({"items": vectors.vectors[:-1].copy()}, folder / "interest.safetensors")
        write_card(folder, Card(model_version=version, created_at=0, data_hash="", settings={}, split_time=0, files={}))
    Registry(home).select(version)


def make_events(n: int, users: int = 30) -> list[Event]:
    rng = np.random.default_rng(3)
    return [Event(f"u{rng.integers(users)}", f"i{rng.integers(N_ITEMS)}", 1e9 + k // 3 - (5 if k % 17 == 0 else 0),
                  "view", f"e{k}", k, 0.0) for k in range(n)]


def value(event: Event) -> bytes:
    return orjson.dumps({"user_id": event.user_id, "item_id": event.item_id, "event_time": event.event_time,
                         "event_type": event.event_type, "event_id": event.event_id})


def produce(bootstrap: str, records: list[tuple[str, bytes | None, bytes, dict[str, bytes]]]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    for topic, key, data, headers in records:
        producer.produce(topic, data, key, headers=headers)
        producer.poll(0)
    assert producer.flush(30) == 0


def expected(role: Role, events: list[Event]) -> dict[str, UserState]:
    """Return the states of a single-threaded replay."""
    states: dict[str, UserState] = {}
    Planner(item_vectors(), CALIBRATION, role.settings, "m1").events(states, events, 1e9)
    return states


def assert_equal(states: dict[str, UserState], truth: dict[str, UserState]) -> None:
    """The same but for what depends on the clock and on which events were said to be duplicates."""
    assert set(states) == set(truth)
    for user, state in states.items():
        other = truth[user]
        for name in ("items", "times", "types", "counts", "seen", "event_ids", "count", "late", "too_late"):
            assert getattr(state, name) == getattr(other, name), (user, name)
        for name in ("short", "long"):
            np.testing.assert_allclose(
                np.frombuffer(getattr(state, name), "<f4"), np.frombuffer(getattr(other, name), "<f4"), atol=1e-5)


def test_kill_9_again_and_again_loses_nothing(broker: str, tmp_path: Path) -> None:
    role = Role(broker, tmp_path / "home")
    events = make_events(6000)
    role.start()
    role.wait_ready()
    for start in range(0, len(events), 1500):
        part = events[start:start + 1500]
        produce(broker, [("behaviour-events", e.user_id.encode(), value(e), {}) for e in part])
        if start < 4500:
            time.sleep(0.1 + 0.4 * (start // 1500))  # before, amid and after processing
            role.end(signal.SIGKILL)
            role.start()
    role.wait(lambda: role.committed("behaviour-events") == len(events))
    assert role.end(signal.SIGTERM) == 0
    assert not (role.settings.home / "run" / "streams.ready").exists()
    states, truth = role.states(), expected(role, events)
    assert_equal(states, truth)
    requests = [RankingRequest.model_validate_json(data) for data in role.read("ranking-requests")]
    assert {r.user_id: max(q.count for q in requests if q.user_id == r.user_id) for r in requests} == {
        user: state.count for user, state in truth.items()}
    asked = [KnowledgeRequest.model_validate_json(data) for data in role.read("knowledge-requests")]
    assert {r.user_id for r in asked} == set(truth)
    assert role.read("dead-letters") == []


def test_states_come_back_from_the_changelog_when_the_disk_is_lost(broker: str, tmp_path: Path) -> None:
    import shutil

    role = Role(broker, tmp_path / "home")
    events = make_events(900)
    produce(broker, [("behaviour-events", e.user_id.encode(), value(e), {}) for e in events[:600]])
    role.start()
    role.wait(lambda: role.committed("behaviour-events") == 600)
    role.end(signal.SIGKILL)
    shutil.rmtree(role.settings.home / "streams")
    produce(broker, [("behaviour-events", e.user_id.encode(), value(e), {}) for e in events[600:]])
    role.start()
    role.wait(lambda: role.committed("behaviour-events") == 900)
    assert role.end(signal.SIGTERM) == 0
    assert_equal(role.states(), expected(role, events))


def test_bad_records_strays_and_backfill(broker: str, tmp_path: Path) -> None:
    role = Role(broker, tmp_path / "home")
    role.start()
    role.wait_ready()
    bad = [b"", b"{", b"\xff\xfe", b"[]", b'{"user_id":true,"item_id":"i1","event_time":1}', b'{"user_id":"u"}',
           orjson.dumps({"user_id": "u", "item_id": "i1", "event_time": time.time() + 1e7}), b"x" * 900_000]
    stray = next(f"s{n}" for n in range(99) if partition_of(f"s{n}".encode(), 2) != partition_of(b"wrong key", 2))
    records: list[tuple[str, bytes | None, bytes, dict[str, bytes]]] = [
        ("behaviour-events", b"k", data, {}) for data in bad]
    records += [("judgements", b"k", b"?", {}), ("knowledge-updates", b"k", b"{}", {})]
    records += [("behaviour-events", b"wrong key", value(Event(stray, "i1", 5.0, "view", "e1", 0, 0.0)), {})]
    records += [("behaviour-events", b"old", value(Event("old", "i2", 5.0, "view", "e2", 0, 0.0)), {
        "freshet-backfill": b"1"})]
    here = next(f"h{n}" for n in range(99) if partition_of(f"h{n}".encode(), 2) != partition_of(stray.encode(), 2))
    array = b",".join(value(Event(user, "i3", 6.0, "view", f"e-{user}", 0, 0.0)) for user in (stray, here))
    records += [("behaviour-events", here.encode(), b"[" + array + b"]", {})]
    produce(broker, records)
    # The stray is read twice, and so is the element of the array that belongs to another partition than its record.
    role.wait(lambda: role.committed("behaviour-events") == len(bad) + 5)
    role.wait(lambda: role.committed("judgements") + role.committed("knowledge-updates") == 2)
    assert role.end(signal.SIGTERM) == 0
    letters = [DeadLetter.model_validate_json(data) for data in role.read("dead-letters")]
    assert len(letters) == len(bad) + 2
    import base64

    kept = {base64.b64decode(letter.value) for letter in letters if len(letter.value) < 100_000}
    assert kept == {*bad[:-1], b"?", b"{}"}
    assert all(letter.reason and letter.role == "streams" and letter.topic for letter in letters)
    said = orjson.loads(counters_file(role.settings.home, "streams").read_bytes())
    assert said["dead_letters_by"] == {"unreadable": len(bad) + 1, "future": 1}
    assert (said["processed"], said["events"], said["strays"], said["ended"]) == (len(bad) + 7, 4, 2, "clean")
    states = role.states()
    assert {user: state.items for user, state in states.items()} == {
        stray: ["i1", "i3"], "old": ["i2"], here: ["i3"]}
    requests = [RankingRequest.model_validate_json(data) for data in role.read("ranking-requests")]
    assert {r.user_id for r in requests} == {stray, here}  # backfill is folded only


@pytest.mark.kafka
@needs_kafka
def test_a_stray_that_only_fits_compressed_is_a_dead_letter(tmp_path: Path) -> None:
    """3.3 MB in a compressed batch of a few kB ended streams with MessageSizeTooLargeError, again at every start."""
    running = start_broker("kafka", tmp_path)
    role = Role(running.bootstrap, tmp_path / "home")
    stray = next(f"s{n}" for n in range(99) if partition_of(f"s{n}".encode(), 2) == 1)
    large = orjson.dumps({"user_id": stray, "item_id": "i1", "event_time": 5.0, "note": "x" * 3_300_000})
    producer = Producer({"bootstrap.servers": running.bootstrap, "compression.type": "gzip",
                         "message.max.bytes": 20_000_000})
    producer.produce("behaviour-events", large, b"other", partition=0)
    producer.produce("behaviour-events", value(Event("u", "i2", 5.0, "view", "e2", 0, 0.0)), b"u",
                     partition=partition_of(b"u", 2))
    assert producer.flush(30) == 0
    role.start()
    role.wait(lambda: role.committed("behaviour-events") == 2)
    assert role.end(signal.SIGTERM) == 0
    kill_broker(running)
    said = orjson.loads(counters_file(role.settings.home, "streams").read_bytes())
    assert (said["dead_letters_by"], said["events"], said["strays"]) == ({"too_large": 1}, 1, 1)


def test_update_judgement_and_contradiction_go_round(broker: str, tmp_path: Path) -> None:
    role = Role(broker, tmp_path / "home")
    role.start()
    role.wait_ready()
    events = [Event("u", f"i{n}", float(n), "view", f"e{n}", n, 0.0) for n in range(12)]
    produce(broker, [("behaviour-events", b"u", value(e), {}) for e in events[:3]])
    role.wait(lambda: len(role.read("knowledge-requests")) >= 1)
    asked = KnowledgeRequest.model_validate_json(role.read("knowledge-requests")[0])
    assert (asked.user_id, asked.version, asked.reason) == ("u", 1, "cold_start")
    update = KnowledgeUpdate(
        user_id="u", version=1, model_version="m1", reason="cold_start", count=asked.count,
        event_time=asked.event_time, history_hash="h", caused_at=asked.caused_at, generated_at=time.time())
    produce(broker, [("knowledge-updates", b"u", update.model_dump_json().encode(), {})])
    role.wait(lambda: any(b'"reason":"knowledge"' in data for data in role.read("ranking-requests")))
    produce(broker, [("behaviour-events", b"u", value(e), {}) for e in events[3:]])
    role.wait(lambda: role.committed("behaviour-events") == len(events))
    margins = [Margin(event_id=e.event_id, item_id=e.item_id, count=n + 1, value=-9.0, knowledge_version=1)
               for n, e in enumerate(events)] * 2  # said twice, and partly of events the knowledge has seen
    judgement = Judgement(user_id="u", margins=margins, model_version="m1", event_time=11.0, judged_at=time.time())
    produce(broker, [("judgements", b"u", judgement.model_dump_json().encode(), {})])
    role.wait(lambda: role.committed("judgements") == 1)
    assert role.end(signal.SIGTERM) == 0
    state = role.states()["u"]
    assert (state.knowledge_version, state.knowledge_count, state.judged_count) == (1, asked.count, 12)
    assert state.contradicted_at == 0  # nine events are not enough to be sure
    assert 0.0 < state.trust < 1.0
    assert len(state.anchor) == 4 * DIM


def test_states_outlive_an_embedded_broker(tmp_path: Path) -> None:
    events = make_events(900)
    for part in (events[:600], events[600:]):
        running = start_broker("embedded", tmp_path)
        role = Role(running.bootstrap, tmp_path / "home")
        produce(running.bootstrap, [("behaviour-events", e.user_id.encode(), value(e), {}) for e in part])
        role.start()
        role.wait(lambda role=role, part=part: role.committed("behaviour-events") == len(part))  # type: ignore[misc]
        assert role.end(signal.SIGTERM) == 0
        kill_broker(running)
    counts = {user: state.count + state.duplicates for user, state in role.states().items()}
    assert sum(counts.values()) == len(events)


def test_topics_of_another_number_of_partitions_are_refused(tmp_path: Path) -> None:
    running = start_broker("embedded", tmp_path)
    role = Role(running.bootstrap, tmp_path / "home")
    role.settings = replace(role.settings, kafka=replace(role.settings.kafka, partitions=3))
    role.start()
    assert role.process is not None
    assert role.process.wait(60) != 0
    assert "FRESHET_KAFKA_PARTITIONS" in role.log.read_text()
    kill_broker(running)


def test_the_role_follows_when_another_model_is_put_into_use(tmp_path: Path) -> None:
    running = start_broker("embedded", tmp_path)
    role = Role(running.bootstrap, tmp_path / "home")
    events = make_events(600, users=8)
    records = [("behaviour-events", e.user_id.encode(), value(e), {}) for e in events]
    produce(running.bootstrap, records[:300])
    role.start()
    role.wait(lambda: role.committed("behaviour-events") == 300)
    publish_model(tmp_path / "home", "broken")
    (tmp_path / "home" / "models" / "broken" / "interest.safetensors").write_bytes(b"cut short")
    role.wait(lambda: "the model in use cannot be followed" in role.log.read_text(), 30)
    time.sleep(3 * FOLLOW_EVERY_S)
    assert role.log.read_text().count("cannot be followed") == 1
    narrower = ItemVectors(list(VECTORS.rows), np.ascontiguousarray(VECTORS.vectors[:-1, :5]))
    publish_model(tmp_path / "home", "m2", narrower)
    role.wait(lambda: "model m2 is in use now" in role.log.read_text(), 30)
    produce(running.bootstrap, records[300:])
    role.wait(lambda: role.committed("behaviour-events") == 600)
    assert role.end(signal.SIGTERM) == 0
    kill_broker(running)
    states = role.states()
    assert sum(state.count + state.duplicates for state in states.values()) == len(events)
    assert {(state.interest_model, len(state.short), len(state.long)) for state in states.values()} == {("m2", 20, 20)}
