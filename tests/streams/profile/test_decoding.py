"""The fast path and the reader agree on every record; records with several events become several records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.errors import PoisonError
from schemas.reading.reader import EventReader, ReadEvent
from schemas.settings import EventSettings
from streams.profile.decoding import decode_events, decode_record
from tests.schemas.reading.cases import GROUPS, Case, reader

NOON = 1706702400.0
READER = EventReader(EventSettings())
TEXT = st.one_of(st.text(st.characters(max_codepoint=0x17F), max_size=8),
                 st.sampled_from(["", "a" * 256, "a" * 257, "\ud7ff", '"', "\\"]))
TIMES = st.one_of(
    st.floats(3e8, 4.2e9), st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 10**13), st.booleans(),
    st.none(), st.sampled_from(["2020-01-01", "2020-01-01T00:00:00Z", "x", 1e11, 0, -0.0, 315532800, 4102444800,
                                315532799.9, 4102444799.9, 20240131]))
ANY = st.one_of(TEXT, TIMES, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2))  # what orjson can write
RECORDS = st.fixed_dictionaries({}, optional={
    "user_id": st.one_of(TEXT, ANY), "item_id": st.one_of(TEXT, ANY), "event_time": TIMES, "event_id": ANY,
    "event_type": ANY, "schema_version": st.one_of(st.integers(-1, 3), ANY), "more": ANY, "timestamp": TIMES})


@given(st.one_of(RECORDS.map(orjson.dumps), st.binary(max_size=40)))
@example(b'{"user_id":"u","item_id":"i","event_time":1706702400}')
@example(b'{"user_id":"u","item_id":"i","event_time":1706702400,"event_time":1706702401}')
@example(b'{"user_id":"u","item_id":"i","event_time":NaN}')
@example(b'{"user_id":"u","item_id":"i","event_time":1e400}')
@example(b'{"user_id":"u","item_id":"i","event_time":1e9,"event_id":null,"event_type":"x","schema_version":2}')
@example(b'{"user_id":"u","item_id":"i","event_time":1e9,"event_type":null}')
@example(b'{"user_id":"u","item_id":"i","event_time":1e9} ')
@example(b'{"user_id":"u","item_id":"i","event_time":1e9}}')
@example(b'\xef\xbb\xbf{"user_id":"u","item_id":"i","event_time":1e9}')
@example(b'{"user_id":"\\u0041","item_id":"i","event_time":1e9}')
@example(b'{"user_id":"a\tb","item_id":"i","event_time":1e9}')
@example(b'{"user_id":"a\x00b","item_id":"i","event_time":1e9}')
def test_fast_and_strict_decoding_agree(value: bytes) -> None:
    strict = verdict(value)
    if isinstance(strict, str):
        with pytest.raises(PoisonError) as fast:
            decode_record(value, 3, 1.5, False, READER)
        assert fast.value.reason == strict
        return
    (event,), reason = decode_record(value, 3, 1.5, True, READER)
    assert not reason
    assert (event.user_id, event.item_id, event.event_time, event.event_type, event.event_id) == tuple(strict)
    assert (event.offset, event.caused_at, event.backfill) == (3, 1.5, True)


def verdict(value: bytes) -> ReadEvent | str:
    try:
        return READER.record(value)[0][0]
    except PoisonError as error:
        return error.reason


def record(offset: int, value: bytes | None = None, headers: Any = (), **fields: object) -> SimpleNamespace:
    value = value or orjson.dumps({"user_id": "u", "item_id": "i", "event_time": NOON} | fields)
    return SimpleNamespace(topic="behaviour-events", partition=2, value=value, offset=offset, timestamp=5000,
                           timestamp_type=0, key=b"k", headers=headers)


def test_decode_events_separates_usable_and_unusable_records() -> None:
    far = record(2, event_time=NOON + 900)
    marked = record(3, headers=(("other", b""), ("freshet-backfill", b"")))
    empty = SimpleNamespace(value=None, offset=4, timestamp=None, timestamp_type=0, headers=())
    events, good, bad = decode_events([record(1), far, marked, empty], NOON, 60.0, READER)
    assert [(e.offset, e.caused_at, e.backfill) for e in events] == [(1, 5.0, False), (3, 5.0, True)]
    assert [r.offset for r in good] == [1, 3]
    assert [(r.offset, kind, reason) for r, kind, reason in bad] == [
        (2, "future", "event_time: 900 s ahead of the clock"), (4, "unreadable", "empty value")]


def test_each_event_of_an_array_is_a_record_of_its_own() -> None:
    whole = record(7, value=b'[{"user_id":"u","item_id":"i","ts":1706702400},{},'
                            b'{"user_id":1,"item_id":2,"ts":1706702400}]')
    events, good, bad = decode_events([whole], NOON, 60.0, READER)
    assert [(event.user_id, event.item_id, event.offset) for event in events] == [("u", "i", -1), ("1", "2", -1)]
    assert [(part.topic, part.partition, part.offset, part.key) for part in good] == [
        ("behaviour-events", 2, 7, b"k")] * 2
    again = [decode_events([part], NOON, 60.0, READER)[0][0] for part in good]
    assert [event.event_id for event in again] == [event.event_id for event in events]
    assert [(r, reason.split(";")[0]) for r, _, reason in bad] == [
        (whole, "1 of 3 are unusable: element 1: user_id: missing")]


def test_headers_of_cloud_events_are_read() -> None:
    headers = (("ce_specversion", b"1.0"), ("ce_source", b"s"), ("ce_id", b"9"), ("ce_type", b"view"))
    (event,), _, _ = decode_events([record(1, headers=headers)], NOON, 60.0, READER)
    assert (event.event_type, event.event_id) == ("view", "s/9")


def test_other_names_leave_the_fast_path() -> None:
    reader = EventReader(EventSettings(fields={"user_id": "item_id", "item_id": "user_id"}))
    (event,), _, _ = decode_events([record(1)], NOON, 60.0, reader)
    assert (event.user_id, event.item_id) == ("i", "u")


HOUR, DAY = 3600.0, 86_400.0


@pytest.mark.parametrize("stamp", ["producer", "broker"])
@pytest.mark.parametrize(("now", "written", "event_time", "taken"), [
    (1e9 - 2 * DAY, 1e9, 1e9, True),  # a host two days slow
    (1e9 + 2 * DAY, 1e9, 1e9, True),  # a host two days fast
    (1e9, 0.0, 1e9, True),  # a producer that stamps nothing
    (1e9 + 2 * DAY, 1e9, 1e9 + 2 * DAY, True),  # read so late that it is no longer in the future
    (1e9, 1e9, 1e9 + 2 * HOUR, False),
    (1e9 - 2 * DAY, 1e9, 1e9 + 2 * HOUR, False),
])
def test_the_future_begins_after_the_host_and_after_the_record(
    stamp: str, now: float, written: float, event_time: float, taken: bool,
) -> None:
    one = record(1, event_time=event_time)
    one.timestamp, one.timestamp_type = int(written * 1000), int(stamp == "broker")
    events, _, bad = decode_events([one], now, HOUR, READER)
    assert (len(events), [kind for _, kind, _ in bad]) == ((1, []) if taken else (0, ["future"]))


def test_a_producer_whose_clock_is_years_ahead_cannot_move_its_users_there() -> None:
    one = record(1, event_time=4e9)
    one.timestamp = 4_000_000_000_000
    assert [kind for _, kind, _ in decode_events([one], 1e9, DAY, READER)[2]] == ["future"]


@pytest.mark.parametrize("case", [case for group in GROUPS.values() for case in group], ids=lambda case: case.note)
def test_streams_takes_and_refuses_what_the_reader_does(case: Case) -> None:
    """The fast path for plain records must not be another reader."""
    own = reader(**case.settings)
    try:
        wanted = [tuple(event) for event in own.record(case.value, case.headers)[0]]
    except PoisonError as error:
        reason = error.reason
        with pytest.raises(PoisonError) as refused:
            decode_record(case.value, 5, 1.0, False, own, case.headers)
        assert refused.value.reason == reason
        return
    events, _ = decode_record(case.value, 5, 1.0, False, own, case.headers)
    assert [(one.user_id, one.item_id, one.event_time, one.event_type, one.event_id) for one in events] == wanted
