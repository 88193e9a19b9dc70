import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import PoisonError
from schemas.events import BehaviourEvent, make_event_id, parse_event


def event(**fields):
    return orjson.dumps({"user_id": "u", "item_id": "i", "event_time": 1.5} | fields)


def test_three_fields_are_enough_and_the_id_is_computed_from_them():
    parsed = parse_event(event())
    assert (parsed.user_id, parsed.item_id, parsed.event_time, parsed.event_type) == ("u", "i", 1.5, "interaction")
    assert parsed.event_id == make_event_id("u", "i", 1.5, "interaction")
    assert parse_event(event()).event_id == parsed.event_id, "a resent event must get the same id"
    assert parse_event(event(event_id=None)).event_id == parsed.event_id
    assert parse_event(event(item_id="j")).event_id != parsed.event_id
    assert parse_event(event(event_type="click")).event_id != parsed.event_id


def test_a_given_event_id_is_kept():
    assert parse_event(event(event_id="mine")).event_id == "mine"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1970-01-01T00:01:00Z", 60.0), ("1970-01-01T01:00:00+01:00", 0.0), ("1970-01-01 00:00:01.5", 1.5)],
)
def test_iso_8601_times_become_seconds_with_utc_as_the_default_zone(text, seconds):
    assert parse_event(event(event_time=text)).event_time == seconds


def test_unknown_fields_pass_through():
    assert parse_event(event(price=3, nested={"a": [1]})).model_extra == {"price": 3, "nested": {"a": [1]}}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        (None, "empty"),
        (b"\xff\xfe", "JSON"),
        (b"{", "JSON"),
        (b"[1]", "object"),
        (b"null", "object"),
        (event(user_id=None), "user_id"),
        (event(user_id=7), "user_id"),
        (event(user_id=""), "user_id"),
        (event(user_id="x" * 257), "user_id"),
        (event(item_id=["i"]), "item_id"),
        (event(event_time="yesterday"), "event_time"),
        (event(event_time=True), "event_time"),
        (event(event_time=-1), "event_time"),
        (event(event_time=1_700_000_000_000), "event_time"),
        (b'{"user_id":"u","item_id":"i","event_time":NaN}', "event_time"),
        (b'{"user_id":"u","item_id":"i","event_time":1e999}', "event_time"),
        (b'{"item_id":"i","event_time":1}', "user_id"),
        (event(event_type=5), "event_type"),
    ],
)
def test_an_invalid_event_is_poison_and_the_reason_names_the_field(value, reason):
    with pytest.raises(PoisonError, match=reason):
        parse_event(value)


@given(st.binary(max_size=200))
def test_any_bytes_give_an_event_or_a_poison_error(value):
    reason = None
    try:
        event = parse_event(value)
    except PoisonError as error:
        reason = error.reason
    assert isinstance(event, BehaviourEvent) if reason is None else (reason and "\n" not in reason)


@given(
    st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20), st.floats(0, 9e10, allow_nan=False),
)
def test_encoding_and_decoding_keep_an_event(user, item, time):
    if "\ud800" <= max(user + item) <= "\udfff":
        return
    first = parse_event(orjson.dumps({"user_id": user, "item_id": item, "event_time": time}))
    assert parse_event(orjson.dumps(first.model_dump())) == first
