"""Fast and strict decoding agree on every record."""

from __future__ import annotations

from types import SimpleNamespace

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.errors import PoisonError
from schemas.events import BehaviourEvent, parse_event
from streams.profile.decoding import decode_event, decode_events

TEXT = st.one_of(st.text(max_size=8), st.sampled_from(["", "a" * 256, "a" * 257, "\ud7ff", "ü", '"', "\\"]))
TIMES = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 10**13), st.booleans(), st.none(),
                  st.sampled_from(["2020-01-01", "2020-01-01T00:00:00Z", "x", 1e11, 0, -0.0]))
ANY = st.one_of(TEXT, TIMES, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2))  # what orjson can write
RECORDS = st.fixed_dictionaries({}, optional={
    "user_id": st.one_of(TEXT, ANY), "item_id": st.one_of(TEXT, ANY), "event_time": TIMES, "event_id": ANY,
    "event_type": ANY, "schema_version": st.one_of(st.integers(-1, 3), ANY), "more": ANY})


@given(st.one_of(RECORDS.map(orjson.dumps), st.binary(max_size=40)))
@example(b'{"user_id":"u","item_id":"i","event_time":1}')
@example(b'{"user_id":"u","item_id":"i","event_time":1,"event_time":2}')
@example(b'{"user_id":"u","item_id":"i","event_time":NaN}')
@example(b'{"user_id":"u","item_id":"i","event_time":1e400}')
@example(b'{"user_id":"u","item_id":"i","event_time":1,"event_id":null,"event_type":"x","schema_version":2}')
@example(b'{"user_id":"u","item_id":"i","event_time":1,"event_type":null}')
@example(b'{"user_id":"u","item_id":"i","event_time":1} ')
@example(b'{"user_id":"u","item_id":"i","event_time":1}}')
@example(b'\xef\xbb\xbf{"user_id":"u","item_id":"i","event_time":1}')
@example(b'{"user_id":"\\u0041","item_id":"i","event_time":1}')
@example(b'{"user_id":"a\tb","item_id":"i","event_time":1}')
@example(b'{"user_id":"a\x00b","item_id":"i","event_time":1}')
def test_fast_and_strict_decoding_agree(value: bytes) -> None:
    strict = verdict(value)
    if isinstance(strict, str):
        with pytest.raises(PoisonError) as fast:
            decode_event(value, 3, 1.5)
        assert fast.value.reason == strict
        return
    event = decode_event(value, 3, 1.5, True)
    assert (event.user_id, event.item_id, event.event_time, event.event_type, event.event_id) == (
        strict.user_id, strict.item_id, strict.event_time, strict.event_type, strict.event_id)
    assert (event.offset, event.caused_at, event.backfill) == (3, 1.5, True)


def verdict(value: bytes) -> BehaviourEvent | str:
    try:
        return parse_event(value)
    except PoisonError as error:
        return error.reason


def record(offset: int, **fields: object) -> SimpleNamespace:
    value = orjson.dumps({"user_id": "u", "item_id": "i", "event_time": 100.0} | fields)
    return SimpleNamespace(value=value, offset=offset, timestamp=5000, headers=())


def test_decode_events_separates_usable_and_unusable_records() -> None:
    far = record(2, event_time=1000.0)
    marked = record(3)
    marked.headers = (("other", b""), ("freshet-backfill", b""))
    events, good, bad = decode_events([record(1), far, marked, SimpleNamespace(
        value=None, offset=4, timestamp=None, headers=())], now=100.0, future_s=60.0)
    assert [(e.offset, e.caused_at, e.backfill) for e in events] == [(1, 5.0, False), (3, 5.0, True)]
    assert [r.offset for r in good] == [1, 3]
    assert [(r.offset, reason) for r, reason in bad] == [
        (2, "event_time: 900 s ahead of the clock"), (4, "empty value")]
