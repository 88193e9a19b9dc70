import io
from pathlib import Path

import pytest

from models.data.account import Account
from schemas.errors import DataError
from schemas.events import BehaviourEvent
from schemas.settings import EventSettings
from workers.data.produce import Pacer, read_file


def read(text: str, **settings: object) -> tuple[list[BehaviourEvent], Account]:
    account = Account("standard input")
    stdin = io.BufferedReader(io.BytesIO(text.encode()))
    return list(read_file("-", account, EventSettings(**settings), stdin)), account


def test_csv_and_json_lines_give_the_same_events() -> None:
    table, _ = read("user_id,item_id,timestamp,rating\n7,50,893286638,4\n")
    lines, account = read('\n{"user_id": 7, "item_id": "50", "timestamp": 893286638, "rating": "4"}\n')
    assert table == lines
    assert table[0].event_id == lines[0].event_id
    assert account.left_out == 0


def test_a_file_is_read_like_standard_input(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("userId;movieId;timestamp\n7;50.0;2026-01-01T00:00:00Z\n")
    (event,) = read_file(str(tmp_path / "e.csv"), Account("e.csv"), EventSettings())
    assert (event.user_id, event.item_id, event.event_time) == ("7", "50", 1767225600)


def test_invalid_lines_are_counted_with_their_number() -> None:
    events, account = read('{"user_id": "7", "item_id": "50", "event_time": 893286638}\nnot json\n{"user_id": 7}\n')
    assert len(events) == 1
    assert account.left_out == 2
    assert {skipped.line for skipped in account.skipped.values()} == {2, 3}


def test_envelopes_and_other_names_are_read() -> None:
    (event,), _ = read('{"messageId":"m","userId":"u","timestamp":"2024-01-31T12:00:00Z","event":"View",'
                       '"properties":{"product_id":"i"}}')
    assert (event.user_id, event.item_id, event.event_id) == ("u", "i", "m")
    (event,), _ = read("who,what,when\nu,i,893286638\n",
                       fields={"user_id": "who", "item_id": "what", "event_time": "when"})
    assert (event.user_id, event.item_id) == ("u", "i")


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("\n\n", "empty"),
                                            ("user_id,timestamp\nu,1\n", "item_id"),
                                            ("user_id,item_id\n1,2\n", "event_time")])
def test_the_error_for_an_unusable_file_says_why(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(text)


def test_pacer() -> None:
    fast, slow = Pacer(0.0, 100.0), Pacer(10.0, 100.0)
    assert [fast.due(1.0), fast.due(1000.0)] == [100.0, 100.0]
    assert [slow.due(50.0), slow.due(60.0), slow.due(40.0)] == [100.0, 101.0, 100.0]
