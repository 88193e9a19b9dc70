"""Every row of the table; any bytes are events or one line of reason; reading what was read changes nothing."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import PoisonError
from schemas.reading.fields import NOTHING
from schemas.reading.reader import ReadEvent
from tests.schemas.reading.cases import GROUPS, NOON, Case, plain, reader
from tests.schemas.reading.page import PAGE, page

ALL = [pytest.param(case, id=f"{group}-{number}") for group, cases in GROUPS.items()
       for number, case in enumerate(cases)]


def test_the_table_is_long_enough() -> None:
    assert len(ALL) >= 150


@pytest.mark.parametrize("case", ALL)
def test_every_row_of_the_table(case: Case) -> None:
    read = reader(**case.settings)
    if isinstance(case.wanted, str):
        with pytest.raises(PoisonError) as refused:
            read.record(case.value, case.headers)
        assert case.wanted in refused.value.reason
        return
    events, reason = read.record(case.value, case.headers)
    assert not reason
    assert [tuple(event[:4]) for event in events] == case.wanted
    assert not case.event_id or events[0].event_id == case.event_id


def test_the_usable_events_of_an_array_are_taken_and_the_others_named() -> None:
    events, reason = reader().record(b"[" + plain() + b",{}," + plain(item_id="j") + b"]")
    assert [event.item_id for event in events] == ["i", "j"]
    assert reason.startswith("1 of 3 are unusable: element 1: user_id: missing")


def test_equal_events_get_equal_ids_however_they_are_written() -> None:
    forms = [plain(), plain(event_time="2024-01-31T12:00:00Z"), plain(event_time=int(NOON * 1000)),
             plain(event_type=""), plain(event_id=None), b"[" + plain() + b"]", b"\xef\xbb\xbf" + plain()]
    assert len({reader().record(form)[0][0].event_id for form in forms}) == 1
    others = [plain(item_id="j"), plain(event_type="click"), plain(event_time=NOON + 1), plain(user_id="v")]
    assert len({reader().record(form)[0][0].event_id for form in [plain(), *others]}) == 5


def test_a_row_ahead_of_the_clock_is_refused_and_its_digits_explained() -> None:
    row = {"user_id": "u", "item_id": "i", "event_time": "2024013112"}
    with pytest.raises(PoisonError, match="2034-02-20 is ahead of the clock; its digits look like 2024-01-31T12:00"):
        reader().row(row, latest=NOON)


_TEXT = st.text(st.characters(max_codepoint=0x17F), max_size=20) | st.sampled_from(["x" * 300, "2024-01-31", "1e400"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=4)
_FIELDS = st.sampled_from(["user_id", "item_id", "event_time", "event_type", "event_id", "schema_version", "op",
                           "after", "specversion", "source", "data", "messageId", "userId", "properties", "payload"])


@given(st.binary(max_size=200) | st.dictionaries(_FIELDS, _JSON, max_size=8).map(
    lambda data: json.dumps(data).encode("utf-8", "surrogatepass")), st.sampled_from(
    ["auto", "none", "segment", "snowplow", "debezium", "cloudevents"]))
def test_any_bytes_give_events_or_one_line_of_reason(value: bytes, envelope: str) -> None:
    try:
        events, reason = reader(envelope=envelope).record(value)
    except PoisonError as error:
        events, reason = [], error.reason
        assert reason
    assert "\n" not in reason
    for event in events:
        assert isinstance(event, ReadEvent)
        assert 0 < len(event.user_id) <= 256
        assert event.event_time >= 315_532_800


_ID = _TEXT.filter(lambda text: 0 < len(text) <= 256 and text not in NOTHING)


@given(_ID, _ID, st.floats(315_532_800, 4_102_444_799))
def test_reading_what_was_read_changes_nothing(user: str, item: str, at: float) -> None:
    (first,), _ = reader().record(plain(user_id=user, item_id=item, event_time=at))
    (again,), _ = reader().record(orjson.dumps(first._asdict()))
    assert again == first


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.schemas.reading.page`"
