"""Whose fault a failure is: the record's, which is buried, or the store's and the program's, so that streams ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import rocksdict

from schemas.errors import FreshetError
from schemas.liveness import Progress
from schemas.settings import EventSettings, KafkaSettings, Settings, StateSettings
from streams.decisions.planner import Plan, Planner, States
from streams.profile.fold import Event
from streams.service.outbox import FaustOutbox, partition_of
from streams.service.stage import Stage
from streams.service.table import UserTable
from tests.streams.cases import CALIBRATION, item_vectors
from tests.streams.service.test_outbox import Producer
from tests.streams.service.test_table import Writer

BY_HAND = Settings(kafka=KafkaSettings(partitions=2), state=StateSettings(history=6, seen=8, event_ids=16))
HERE = [f"u{n}" for n in range(400) if partition_of(f"u{n}".encode(), 2) == 0]


class FaultyPlanner(Planner):
    """The planner, failing on events for which `fault` returns an error."""

    def __init__(self, fault: Callable[[Event], Exception | None]) -> None:
        super().__init__(item_vectors(), CALIBRATION, BY_HAND, "m1")
        self.fault = fault

    def events(self, states: States, events: Sequence[Event], now: float, ticks: float | None = None) -> Plan:
        plan = super().events(states, events, now, ticks)  # first, so that the failure leaves states half changed
        for event in events:
            error = self.fault(event)
            if error is not None:
                raise error
        return plan


@pytest.fixture
def store(tmp_path: Path) -> Iterator[rocksdict.Rdict]:
    store = rocksdict.Rdict(str(tmp_path / "db"), rocksdict.Options(raw_mode=True))
    yield store
    with contextlib.suppress(rocksdict.DbClosedError):
        store.close()


def stage_on(
    store: rocksdict.Rdict, home: Path, fault: Callable[[Event], Exception | None] = lambda event: None,
    producer: Producer | None = None,
) -> Stage:
    outbox = FaustOutbox(producer or Producer())
    faust: Any = SimpleNamespace(changelog_topic_name="changelog", data=SimpleNamespace(
        offset_key=b"offset", _db_for_partition=lambda partition: store))
    changelog: Any = SimpleNamespace(writer=lambda partition: Writer())
    return Stage(
        FaultyPlanner(fault), UserTable(faust, changelog), outbox, BY_HAND, Progress(home, "streams"), lambda: 1e9)


def record(n: int, user: str | None = None, **fields: Any) -> Any:
    value = orjson.dumps({"user_id": user or HERE[n % 50], "item_id": f"i{n % 20}", "event_time": 9e8 + n,
                          "event_id": f"e{n}"} | fields)
    return SimpleNamespace(topic="behaviour-events", partition=0, offset=n, timestamp=1_000, timestamp_type=0,
                           headers=(), key=b"k", value=value)


def prepare(stage: Stage, records: list[Any]) -> Any:
    return stage.prepare("behaviour-events", 0, records)


def test_a_store_that_cannot_be_read_buries_nothing(store: rocksdict.Rdict, tmp_path: Path) -> None:
    """A disk error dead-lettered 5 of 5 valid events, and they were committed."""
    stage = stage_on(store, tmp_path)
    store.close()
    with pytest.raises(rocksdict.DbClosedError):
        prepare(stage, [record(n) for n in range(5)])


def test_a_stored_state_that_is_none_buries_nothing(store: rocksdict.Rdict, tmp_path: Path) -> None:
    store.put(HERE[3].encode(), b"\xff not a state")
    with pytest.raises(FreshetError, match="cannot be read"):
        prepare(stage_on(store, tmp_path), [record(n) for n in range(5)])


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device"), FreshetError("settings")])
def test_an_error_of_the_environment_buries_nothing(
    store: rocksdict.Rdict, tmp_path: Path, error: Exception,
) -> None:
    stage = stage_on(store, tmp_path, lambda event: error if event.event_id == "e3" else None)
    with pytest.raises(type(error)):
        prepare(stage, [record(n) for n in range(5)])


def test_a_broken_step_ends_the_role_before_anything_is_delivered(store: rocksdict.Rdict, tmp_path: Path) -> None:
    """It buried 500 of 500."""
    stage = stage_on(store, tmp_path, lambda event: KeyError("always"))
    with pytest.raises(FreshetError, match=r"33 records in a row failed, the last one cannot be applied: KeyError"):
        prepare(stage, [record(n) for n in range(500)])


def test_a_step_that_is_broken_for_one_kind_of_record_ends_the_role_too(
    store: rocksdict.Rdict, tmp_path: Path,
) -> None:
    stage = stage_on(store, tmp_path, lambda event: KeyError() if event.event_type == "new" else None)
    mixed = [record(n, event_type="new" if n % 2 == 0 else "view") for n in range(250)]
    for start in range(0, 200, 50):
        assert len(prepare(stage, mixed[start:start + 50]).bad) == 25
    with pytest.raises(FreshetError, match="101 of the newest 201 records failed"):
        prepare(stage, mixed[200:])


@pytest.mark.parametrize("error", [ValueError("strange"), OverflowError("int too big"), KeyError("x")])
def test_one_strange_record_is_buried_and_the_others_count(
    store: rocksdict.Rdict, tmp_path: Path, error: Exception,
) -> None:
    stage = stage_on(store, tmp_path, lambda event: error if event.event_id == "e30" else None)
    delivery = prepare(stage, [record(n) for n in range(500)])
    assert [(bad.record.offset, bad.kind) for bad in delivery.bad] == [(30, "failed")]
    assert type(error).__name__ in delivery.bad[0].reason
    states = stage.table.load(0, HERE[:50])
    assert sum(state.count for state in states.values()) == 499
    asyncio.run(stage.deliver(delivery))
    assert stage.counts["events"] == 499


def test_unreadable_records_end_nothing_however_many(store: rocksdict.Rdict, tmp_path: Path) -> None:
    stage = stage_on(store, tmp_path)
    bad = [record(n) for n in range(3000)]
    for one in bad:
        one.value = b"{"
    delivery = prepare(stage, [*bad, record(3000)])
    assert (len(delivery.bad), len(delivery.states)) == (3000, 1)
    asyncio.run(stage.deliver(delivery))
    assert (stage.progress._fields["dead_letters_by"], stage.counts["events"]) == ({"unreadable": 3000}, 1)


def test_a_stray_that_is_too_large_to_be_sent_on_is_a_dead_letter(store: rocksdict.Rdict, tmp_path: Path) -> None:
    """A compressed record of 3.3 MB fits on the way in, but not on the way to its user's partition."""
    producer = Producer(limit=1_000_000)
    stage = stage_on(store, tmp_path, producer=producer)
    other = next(f"s{n}" for n in range(99) if partition_of(f"s{n}".encode(), 2) == 1)
    large, small = record(1, other, note="x" * 3_300_000), record(2, other)
    delivery = prepare(stage, [record(0), large, small])
    asyncio.run(stage.deliver(delivery))
    assert sorted(topic for topic, _, _ in producer.sent) == [
        "behaviour-events", "dead-letters", "ranking-requests"]
    (letter,) = [orjson.loads(value) for value in producer.taken if b"failed_at" in value]
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("behaviour-events", 0, 1)
    assert "cannot be sent on to its user's partition: 33" in letter["reason"]
    assert small.value in producer.taken


def test_a_request_that_is_too_large_is_a_dead_letter(store: rocksdict.Rdict, tmp_path: Path) -> None:
    producer = Producer(limit=600, limited="ranking-requests")
    stage = stage_on(store, tmp_path, producer=producer)
    asyncio.run(stage.deliver(prepare(stage, [record(1, HERE[0]), record(2, HERE[1], event_id="e" * 250)])))
    (letter,) = [orjson.loads(value) for value in producer.taken if b"failed_at" in value]
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("ranking-requests", 0, -1)
    assert letter["reason"].startswith("cannot be sent: ")
    assert base64.b64decode(letter["key"]).decode() == HERE[1]
    assert stage.progress._fields["dead_letters_by"] == {"too_large": 1}
    assert stage.counts["events"] == 2


def test_users_who_are_here_are_answered_in_their_own_partition(store: rocksdict.Rdict, tmp_path: Path) -> None:
    producer = Producer()
    stage = stage_on(store, tmp_path, producer=producer)
    values = [{"user_id": HERE[0]}, {"user_id": HERE[1], "deny": ["adult"], "keep": True}, {"user_id": 7},
              {"user_id": ""}, {"user_id": HERE[0], "allow": ["x"] * 21}]
    records = [SimpleNamespace(topic="user-seen", partition=0, offset=n, timestamp=1_000, timestamp_type=0, headers=(),
                               key=b"k", value=orjson.dumps(value)) for n, value in enumerate(values)]
    delivery = stage.prepare("user-seen", 0, records)
    asyncio.run(stage.deliver(delivery))
    asked = [orjson.loads(value) for _, value, _ in delivery.messages["ranking-requests", 0]]
    assert [(one["user_id"], one["reason"], one["deny"]) for one in asked] == [
        (HERE[0], "seen", []), (HERE[1], "seen", ["adult"])]
    (stray,) = [pairs for (topic, _), pairs in delivery.messages.items() if topic == "user-seen"]  # 7 is elsewhere
    assert [key for key, _, _ in stray] == [b"7"]
    assert (len(delivery.bad), stage.counts["strays"], len(delivery.states)) == (2, 1, 1)


def test_what_comes_back_from_other_roles_is_bounded(store: rocksdict.Rdict, tmp_path: Path) -> None:
    """A version beyond 64 bits could not be stored: the state's encoder raised, again at every start."""
    stage = stage_on(store, tmp_path)
    asyncio.run(stage.deliver(prepare(stage, [record(n, HERE[0]) for n in range(4)])))
    update = {"user_id": HERE[0], "version": 1, "model_version": "m1", "reason": "drift", "count": 3, "event_time": 1.0,
              "history_hash": "", "caused_at": 1.0, "generated_at": 1.0}
    margin = {"event_id": "e", "item_id": "i1", "count": 4, "value": -1.0, "knowledge_version": 1}
    judgement = {"user_id": HERE[0], "margins": [margin], "model_version": "m1", "event_time": 1.0, "judged_at": 1.0}
    strange: list[tuple[str, Any]] = [
        *[("knowledge-updates", update | {field: value}) for field in ("version", "count")
          for value in (2**70, 2**63, -1)],
        *[("knowledge-updates", update | {field: value}) for field in ("event_time", "caused_at", "generated_at")
          for value in (float("nan"), float("inf"))],
        ("knowledge-updates", update | {"model_version": "m" * 600_000}),
        *[("judgements", judgement | {"margins": [margin | {field: value}]})
          for field in ("count", "knowledge_version") for value in (2**70, -1)],
        ("judgements", judgement | {"margins": [margin | {"item_id": "i" * 600_000}]}),
        ("judgements", judgement | {"codes": [2**70]}),
    ]
    for topic, message in strange:
        one = record(9)
        one.topic, one.value = topic, json.dumps(message).encode()  # orjson writes neither NaN nor such integers
        delivery = stage.prepare(topic, 0, [one])
        assert [bad.kind for bad in delivery.bad] == ["unreadable"], message
        assert delivery.states == []
    for topic, message in (("knowledge-updates", update), ("judgements", judgement)):
        one = record(9)
        one.value = orjson.dumps(message)
        delivery = stage.prepare(topic, 0, [one])
        assert (delivery.bad, len(delivery.states)) == ([], 1)


def test_a_flood_of_unusable_events_is_said_and_stops_streams_if_told_to(
    store: rocksdict.Rdict, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    strange = [record(n, item_id=None) for n in range(120)]
    stage = stage_on(store, tmp_path)
    assert len(prepare(stage, strange).bad) == 120
    prepare(stage, strange)
    said = [entry.getMessage() for entry in caplog.records if "dead letters" in entry.getMessage()]
    assert len(said) == 1, "once a minute"
    assert "100% of the last minute's 120 events are dead letters, the last: item_id: null or empty" in said[0]
    strict = stage_on(store, tmp_path)
    strict.settings = replace(BY_HAND, events=EventSettings(most_bad=0.6))
    assert len(prepare(strict, [record(n) for n in range(100)] + strange).bad) == 120
    with pytest.raises(FreshetError, match=r"71% of the last minute's 340 .* FRESHET_EVENTS_MOST_BAD=0.6"):
        prepare(strict, strange)
