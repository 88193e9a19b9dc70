import io

import pytest

from schemas.errors import DataError
from workers.data.produce import Pacer, RejectedEvent, read_events


def test_csv_and_json_lines_give_the_same_events() -> None:
    rejected = RejectedEvent()
    table = list(read_events(io.StringIO("user_id,item_id,timestamp,rating\n7,50,893286638,4\n"), rejected))
    lines = list(read_events(
        io.StringIO('\n{"user_id": "7", "item_id": "50", "event_time": 893286638, "rating": "4"}\n'), rejected))
    assert table == lines
    assert table[0].event_id == lines[0].event_id
    assert rejected.count == 0


def test_iso_times_are_accepted() -> None:
    (event,) = read_events(io.StringIO("user_id,item_id,event_time\n7,50,2026-01-01T00:00:00Z\n"), RejectedEvent())
    assert event.event_time == 1767225600


def test_invalid_lines_are_counted_with_their_number() -> None:
    rejected = RejectedEvent()
    text = '{"user_id": "7", "item_id": "50", "event_time": 1}\nnot json\n{"user_id": 7}\n'
    assert len(list(read_events(io.StringIO(text), rejected))) == 1
    assert rejected.count == 2
    assert [line.split(":")[0] for line in rejected.first] == ["line 2", "line 3"]


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("\n\n", "empty"), ("user_id,timestamp\n", "item_id"),
                                            ("user_id,item_id\n1,2\n", "timestamp")])
def test_the_error_for_an_unusable_file_says_why(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_events(io.StringIO(text), RejectedEvent()))


def test_pacer() -> None:
    fast, slow = Pacer(0.0, 100.0), Pacer(10.0, 100.0)
    assert [fast.due(1.0), fast.due(1000.0)] == [100.0, 100.0]
    assert [slow.due(50.0), slow.due(60.0), slow.due(40.0)] == [100.0, 101.0, 100.0]
