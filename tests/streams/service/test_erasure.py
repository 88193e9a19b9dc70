"""Erasures in the streams role: what becomes durable, in which order, and what a crash half-way leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import rocksdict

from schemas.messages import ERASED
from schemas.topics import TOPICS
from streams.decisions.forgotten import LOG_APPEND_TIME
from streams.service.outbox import partition_of
from streams.service.stage import ENDED, SOURCES, Stage
from tests.streams.service.test_outbox import Producer
from tests.streams.service.test_stage import HERE, stage_on

ANN, BOB = HERE[0], HERE[1]
ELSEWHERE = next(f"u{n}" for n in range(400) if partition_of(f"u{n}".encode(), 2) == 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[rocksdict.Rdict]:
    store = rocksdict.Rdict(str(tmp_path / "db"), rocksdict.Options(raw_mode=True))
    yield store
    store.close()


def record(topic: str, value: Any, user: str, offset: int = 0, at: int = 1_000) -> Any:
    return SimpleNamespace(
        topic=topic, partition=0, offset=offset, timestamp=at, timestamp_type=LOG_APPEND_TIME, headers=(),
        key=user.encode(), value=None if value is None else orjson.dumps(value))


def event(user: str, n: int, at: int = 1_000) -> Any:
    return record("behaviour-events", {
        "user_id": user, "item_id": f"i{n % 20}", "event_time": 9e8 + n, "event_id": f"{user}{n}"}, user, n, at)


def erasure(user: str, at: int = 2_000) -> Any:
    return record("erasures", {"user_id": user}, user, at=at)


def take(stage: Stage, topic: str, records: list[Any]) -> Any:
    delivery = stage.prepare(topic, 0, records)
    asyncio.run(stage.deliver(delivery))
    return delivery


def held(stage: Stage, user: str) -> int:
    """The number of events in the user's state, 0 = there is none."""
    state = stage.table.load(0, [user]).get(user)
    return 0 if state is None else state.count


def test_a_user_is_erased_from_the_next_batch_on_and_then_on_disk(store: rocksdict.Rdict, tmp_path: Path) -> None:
    stage = stage_on(store, tmp_path)
    take(stage, "behaviour-events", [event(user, n) for n in range(4) for user in (ANN, BOB)])
    assert stage.planner.market is not None
    stage.planner.market.outstanding[ANN] = 1.0
    delivery = stage.prepare("erasures", 0, [erasure(ANN)])
    assert (held(stage, ANN), held(stage, BOB)) == (0, 4), "before anything is durable: the next batch is prepared now"
    assert store.get(ANN.encode()) is not None
    assert delivery.states == [(ANN.encode(), None, [])]
    assert delivery.messages == {(topic, 0): [(ANN.encode(), None, [(ERASED, b"1")])] for topic in ENDED}
    asyncio.run(stage.deliver(delivery))
    assert store.get(ANN.encode()) is None
    assert store.get(BOB.encode()) is not None
    assert ANN not in stage.planner.market.outstanding
    assert (stage.counts["erased"], stage.counts["erased_states"]) == (1, 1)
    again = take(stage, "erasures", [erasure(ANN, 3_000)])
    assert {headers[0] for pairs in again.messages.values() for _, _, headers in pairs} == {(ERASED, b"0")}
    assert (stage.counts["erased"], stage.counts["erased_states"]) == (2, 1)


def test_events_that_come_later_start_a_new_user(store: rocksdict.Rdict, tmp_path: Path) -> None:
    stage = stage_on(store, tmp_path)
    take(stage, "behaviour-events", [event(ANN, n) for n in range(4)])
    erased = stage.prepare("erasures", 0, [erasure(ANN)])
    later = stage.prepare("behaviour-events", 0, [event(ANN, n, at=2_500) for n in range(7, 9)])
    asyncio.run(stage.deliver(erased))
    assert held(stage, ANN) == 2, "the erasure did not take what came after it"
    asyncio.run(stage.deliver(later))
    assert held(stage, ANN) == 2
    stage.forget()
    assert held(stage, ANN) == 2


@pytest.mark.parametrize("first", ["events", "erasure"])
def test_an_erasure_that_crashed_half_way_is_repeated(store: rocksdict.Rdict, tmp_path: Path, first: str) -> None:
    """The states were committed, nothing else: on the next start both topics are read again, in any order."""
    before = [event(ANN, n) for n in range(4)]
    crashed = stage_on(store, tmp_path, producer=Producer(*[RuntimeError("killed")] * 9))  # type: ignore[arg-type]
    states = crashed.prepare("behaviour-events", 0, before).states
    asyncio.run(crashed.table.save(crashed.table.writer(0), states))
    with pytest.raises(RuntimeError):
        take(crashed, "erasures", [erasure(ANN)])
    assert store.get(ANN.encode()) is None
    producer = Producer()
    stage = stage_on(store, tmp_path, producer=producer)
    batches = [("behaviour-events", before), ("erasures", [erasure(ANN)])]
    for topic, records in batches if first == "events" else reversed(batches):
        take(stage, topic, records)
    assert held(stage, ANN) == 0
    assert {topic for topic, _, _ in producer.sent} >= set(ENDED), "what had not been sent is sent now"
    if first == "erasure":
        assert stage.counts["from_before"] == 4


def update(user: str, version: int) -> Any:
    return record("knowledge-updates", {
        "user_id": user, "version": version, "model_version": "m1", "reason": "drift", "count": 3, "event_time": 9e8,
        "history_hash": "h", "caused_at": 1.0, "generated_at": 2.0}, user)


def test_knowledge_written_after_the_erasure_by_a_worker_that_lost_its_partitions_is_erased_again(
    store: rocksdict.Rdict, tmp_path: Path,
) -> None:
    stage = stage_on(store, tmp_path)
    again = {("knowledge-requests", 0): [(ANN.encode(), None, [])]}
    take(stage, "behaviour-events", [event(ANN, n) for n in range(4)])
    take(stage, "erasures", [erasure(ANN)])
    assert take(stage, "knowledge-updates", [update(ANN, 5)]).messages == {}, "the worker has not come to it yet"
    take(stage, "knowledge-updates", [record("knowledge-updates", None, ANN)])
    assert take(stage, "knowledge-updates", [update(ANN, 5)]).messages == again
    take(stage, "behaviour-events", [event(ANN, n, at=2_500) for n in range(10, 20)])
    state = stage.table.load(0, [ANN])[ANN]
    assert state.pending is not None
    assert state.pending.version == 1, "a new user, whose knowledge was asked for"
    assert take(stage, "knowledge-updates", [update(ANN, 5)]).messages == again
    assert state.knowledge_version == 0
    own = take(stage, "knowledge-updates", [update(ANN, 1)])
    assert [topic for topic, _ in own.messages] == ["ranking-requests"]
    assert stage.table.load(0, [ANN])[ANN].knowledge_version == 1


def test_an_erasure_of_a_user_elsewhere_is_sent_on(store: rocksdict.Rdict, tmp_path: Path) -> None:
    delivery = stage_on(store, tmp_path).prepare("erasures", 0, [erasure(ELSEWHERE)])
    assert delivery.states == []
    assert [(where, [key for key, _, _ in pairs]) for where, pairs in delivery.messages.items()] == [
        (("erasures", 1), [ELSEWHERE.encode()])]


@pytest.mark.parametrize("topic", SOURCES)
def test_a_tombstone_is_no_dead_letter(store: rocksdict.Rdict, tmp_path: Path, topic: str) -> None:
    stage = stage_on(store, tmp_path)
    for _ in range(2):
        delivery = take(stage, topic, [record(topic, None, ANN)])
        assert (delivery.bad, delivery.states, delivery.messages) == ([], [], {})
        take(stage, "erasures", [erasure(ANN)])


def test_an_erasure_of_nobody_is_a_dead_letter(store: rocksdict.Rdict, tmp_path: Path) -> None:
    bad = [record("erasures", value, ANN, n) for n, value in enumerate(({"user_id": ""}, {}, {"user_id": "x" * 300}))]
    delivery = stage_on(store, tmp_path).prepare("erasures", 0, bad)
    assert [one.kind for one in delivery.bad] == ["unreadable"] * 3
    assert (delivery.states, delivery.messages) == ([], {})
    assert TOPICS["erasures"].partitions is None, "co-partitioned with the events"


def test_a_state_that_cannot_be_read_is_erased(store: rocksdict.Rdict, tmp_path: Path) -> None:
    store.put(ANN.encode(), b"\xff not a state")
    stage = stage_on(store, tmp_path)
    take(stage, "erasures", [erasure(ANN)])
    assert store.get(ANN.encode()) is None


def test_nothing_of_an_erased_user_stays_in_rocksdbs_files(store: rocksdict.Rdict, tmp_path: Path) -> None:
    """But for the key where it bounded a file, in RocksDB's list of files; opening the store rewrites that."""
    stage = stage_on(store, tmp_path)
    users = [f"{user}-to-be-found" for user in (ANN, BOB)]
    named = {user: next(f"{user}{n}" for n in range(99) if partition_of(f"{user}{n}".encode(), 2) == 0)
             for user in users}
    take(stage, "behaviour-events", [event(user, n) for n in range(4) for user in named.values()])
    store.flush()
    take(stage, "erasures", [erasure(named[users[0]])])
    found = b"".join(path.read_bytes() for path in (tmp_path / "db").iterdir() if path.suffix in (".sst", ".log"))
    assert named[users[0]].encode() not in found
    assert named[users[1]].encode() in found
