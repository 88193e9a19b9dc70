import numpy as np
import pytest

from models.data.dataset import clean, item_text, load, split
from schemas.errors import DataError

ITEMS = '{"item_id": "a", "title": "Heat", "attributes": ["Crime", "1995"]}\n{"item_id": "b", "title": "Up"}\n'
EVENTS = "user_id,item_id,timestamp\nu,b,20\nv,a,10\nu,a,30\n"


def write(folder, events=EVENTS, items=ITEMS):
    (folder / "events.csv").write_text(events)
    (folder / "items.jsonl").write_text(items)
    return folder


def test_events_are_sorted_by_time(tmp_path):
    data = load(write(tmp_path))
    assert [data.users[user] for user in data.events.user] == ["v", "u", "u"]
    assert [data.items[item] for item in data.events.item] == ["a", "b", "a"]
    assert data.events.time.tolist() == [10, 20, 30]
    assert (data.types, data.skipped) == (["interaction"], {})
    assert data.texts == ["Heat. Crime, 1995", "Up"]


def test_equal_times_keep_the_order_of_the_file(tmp_path):
    rows = "".join(f"u,i{number},5\n" for number in range(50))
    data = load(write(tmp_path, "user_id,item_id,timestamp\n" + rows))
    assert [data.items[item] for item in data.events.item] == [f"i{number}" for number in range(50)]


def test_bad_rows_are_skipped_and_counted(tmp_path):
    events = (
        "timestamp,event_type,user_id,item_id\n1,view,u,a\nsoon,view,u,a\n2,view,u\n-1,view,u,a\n1e14,view,u,a\n"
        "nan,view,u,a\n3,,,a\n1,view,u,a\n1970-01-01T00:00:09,buy,u,unheard\n")
    items = ITEMS + 'not json\n[1]\n{"title": "no id"}\n{"item_id": "a", "title": "again"}\n'
    data = load(write(tmp_path, events, items))
    assert data.skipped == {
        "events: timestamp not in seconds or ISO 8601": 4, "events: wrong number of columns": 1,
        "events: no usable user_id or item_id": 1, "events: duplicate": 1, "items: not JSON": 1,
        "items: no usable item_id": 2, "items: duplicate item_id": 1, "items_without_text": 1,
    }
    assert data.events.time.tolist() == [1, 9]
    assert [data.types[kind] for kind in data.events.type] == ["view", "buy"]
    assert data.items == ["a", "b", "unheard"]
    assert data.texts[2] == ""


@pytest.mark.parametrize(("events", "items", "message"), [
    ("user_id,item_id\nu,a\n", ITEMS, r"events\.csv has no column 'timestamp'; it has user_id, item_id"),
    ("", ITEMS, r"events\.csv is empty"),
    ("user_id,item_id,timestamp\n", ITEMS, r"events\.csv has no usable event"),
    ("user_id,item_id,timestamp\nu,a,?\n", ITEMS, r"events\.csv has no usable event .*timestamp not in seconds"),
    (EVENTS, "", r"items\.jsonl has no usable item; it is empty"),
    (EVENTS, "{}\n", r"items\.jsonl has no usable item; each line"),
])
def test_errors_name_unusable_files(tmp_path, events, items, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, events, items))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"events\.csv is missing"):
        load(tmp_path)


def test_texts_are_one_short_line_without_markup():
    assert clean("  a\x00b\n\u202ec\u200b &amp; <end_of_turn> d<|im_start|>") == "a b c & d"
    assert len(clean("word " * 1000)) <= 320
    assert item_text("T", {"genre": ["x", "y"], "year": 1995, "none": None}) == "T. genre: x y, year: 1995"
    assert item_text(None, None) == ""
    assert item_text(3, "plain") == "plain"


def test_the_hash_depends_on_both_files(tmp_path):
    first = load(write(tmp_path)).hash
    assert load(write(tmp_path)).hash == first
    assert load(write(tmp_path, items=ITEMS + '{"item_id": "c"}\n')).hash != first
    assert load(write(tmp_path, events=EVENTS + "u,b,40\n")).hash != first


def test_split_is_by_time(tmp_path):
    rows = "".join(f"u{number % 3},a,{100 - number}\n" for number in range(10))
    data = load(write(tmp_path, "user_id,item_id,timestamp\n" + rows))
    past, later = split(data, 0.8)
    assert (len(past), len(later)) == (8, 2)
    assert past.time.max() <= later.time.min()
    assert np.all(np.diff(past.time) >= 0)
    with pytest.raises(DataError, match="cannot be split"):
        split(data, 0.05)
