import gzip
from datetime import date

import numpy as np
import pytest

from models.data.dataset import split
from models.data.loading import load_dataset
from schemas.errors import DataError
from schemas.settings import EventSettings

ITEMS = '{"item_id": "a", "title": "Heat", "attributes": ["Crime", "1995"]}\n{"item_id": "b", "title": "Up"}\n'
RELATIVE = EventSettings(earliest=date(1970, 1, 1))  # small numbers read better
EVENTS = "user_id,item_id,timestamp\nu,b,20\nv,a,10\nu,a,30\n"


def load(folder, settings=RELATIVE):
    return load_dataset(folder, settings)


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
    assert data.titles == ["Heat", "Up"]


def test_equal_times_keep_the_order_of_the_file(tmp_path):
    rows = "".join(f"u,i{number},5\n" for number in range(50))
    data = load(write(tmp_path, "user_id,item_id,timestamp\n" + rows, '{"item_id": "i3"}\n'))
    assert [data.items[item] for item in data.events.item] == [f"i{number}" for number in range(50)]


def test_bad_rows_are_skipped_and_counted(tmp_path):
    events = (
        "timestamp,event_type,user_id,item_id\n1,view,u,a\nsoon,view,u,a\n2,view,u\n-1,view,u,a\n5e22,view,u,a\n"
        "nan,view,u,a\n3,,,a\n1,view,u,a\n1970-01-01T00:00:09,buy,u,unheard\n")
    items = ITEMS + 'not json\n[1]\n{"title": "no id"}\n{"item_id": "a", "title": "again"}\n'
    data = load(write(tmp_path, events, items))
    assert sum(count for reason, count in data.skipped.items() if reason.startswith("events.csv")) == 7
    assert data.skipped["events.csv: 3 columns where the header has 4"] == 1
    assert data.skipped["events.csv: user_id: null or empty"] == 1
    assert data.skipped["events.csv: the same event again"] == 1
    assert {reason: count for reason, count in data.skipped.items() if not reason.startswith("events.csv")} == {
        "items.jsonl: not JSON": 1, "items.jsonl: not an object": 1, "items.jsonl: item_id: missing": 1,
        "items.jsonl: the item_id is there already": 1, "items_without_text": 1}
    assert data.events.time.tolist() == [1, 9]
    assert [data.types[kind] for kind in data.events.type] == ["view", "buy"]
    assert data.items == ["a", "b", "unheard"]
    assert (data.texts[2], data.titles[2]) == ("", "")
    assert [(account.read, account.used) for account in data.accounts] == [(6, 2), (9, 2)]


@pytest.mark.parametrize(("events", "items", "message"), [
    ("user_id,item_id\nu,a\n", ITEMS, r"events\.csv has no column 'event_time'; it has user_id, item_id"),
    ("", ITEMS, r"events\.csv is empty"),
    ("user_id,item_id,timestamp\n", ITEMS, r"events\.csv has no usable event"),
    ("user_id,item_id,timestamp\nu,a,?\n", ITEMS, r"events\.csv has no usable event\. .*neither a number nor ISO"),
    (EVENTS, "", r"items\.jsonl is empty"),
    (EVENTS, "{}\n", r"items\.jsonl has no usable item; each line"),
    (EVENTS, '{"item_id": "other"}\n', r"0 of 2 items of the events are in the catalogue: the events have 'b', 'a'"),
])
def test_errors_name_unusable_files(tmp_path, events, items, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, events, items))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"events\.csv is missing"):
        load(tmp_path)
    (tmp_path / "events.csv").write_text(EVENTS)
    with pytest.raises(DataError, match=r"items\.jsonl is missing"):
        load(tmp_path)
    with pytest.raises(DataError, match="is missing; a data set is a folder"):
        load(tmp_path / "nowhere")


def test_times_in_another_unit_are_refused_and_the_unit_is_named(tmp_path):
    with pytest.raises(DataError, match="in minutes it would be 2024-01-31"):
        load(write(tmp_path, "user_id,item_id,timestamp\nu,a,28445040\n"), EventSettings())
    with pytest.raises(DataError, match="ahead of the clock; its digits look like 2034-01-31T12"):
        load(write(tmp_path, "user_id,item_id,timestamp\nu,a,2034013112\n"), EventSettings())


def test_ids_are_the_same_in_every_form(tmp_path):
    data = load(write(tmp_path, "user_id,item_id,timestamp\n7,1.0,1\n7.0,2,2\n 7 ,1,3\n",
                      '{"item_id": 1, "title": "one"}\n{"item_id": 2.0, "title": "two"}\n'))
    assert (data.users, data.items, data.texts) == (["7"], ["1", "2"], ["one", "two"])


def test_items_that_hardly_meet_the_events_are_a_warning(tmp_path):
    rows = "".join(f"u,i{number},{number}\n" for number in range(1, 9))
    data = load(write(tmp_path, "user_id,item_id,timestamp\nu,a,9\n" + rows))
    assert data.warnings == ("1 of 9 items of the events are in the catalogue: the events have 'i1', 'i2', 'i3', the "
                             "catalogue has 'a', 'b'",)


PUBLIC = {
    "MovieLens-1M": ({"ratings.dat": "7::50::5::893286638\n7::1::3::893286700\n",
                      "movies.dat": "50::Misérables, Les (1995)::Drama|Musical\n1::Up::Animation\n".encode("latin-1")},
                     ["Misérables, Les (1995). Drama, Musical", "Up. Animation"]),
    "MovieLens-100K": ({"u.data": "7\t50\t5\t893286638\n",
                        "u.item": "50|Étoile (1989)|01-Jan-1989||http://x|0|1|0|0|0|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n".encode(
                            "latin-1")}, ["Étoile (1989). Action, Comedy"]),
    "MovieLens-25M": ({"ratings.csv": "userId,movieId,rating,timestamp\n7,50,5.0,893286638\n",
                       "movies.csv": 'movieId,title,genres\n50,"Usual Suspects, The (1995)",Crime|Thriller\n'},
                      ["Usual Suspects, The (1995). Crime, Thriller"]),
    "Amazon 2018": ({"Beauty_5.jsonl.gz": gzip.compress(
        b'{"reviewerID": "7", "asin": "50", "unixReviewTime": 1400000000, "overall": 5.0}\n'),
        "meta_Beauty.jsonl.gz": gzip.compress(
            b'{"asin": "50", "title": "Soap", "brand": "Acme", "category": ["Beauty", "Skin"]}\n')},
        ["Soap. Beauty, Skin, Acme"]),
    "Amazon 2023": ({"Beauty.jsonl": '{"user_id": "7", "asin": "x", "parent_asin": "50", "timestamp": 1700000000123}\n',
                     "meta_Beauty.jsonl": '{"parent_asin": "50", "title": "Soap", "store": "Acme", "price": 3}\n'},
                    ["Soap. Acme"]),
    "Yelp": ({"yelp_academic_dataset_review.json":
              '{"review_id": "r", "user_id": "7", "business_id": "50", "date": "2018-07-07 22:09:11", "stars": 3}\n',
              "yelp_academic_dataset_business.json":
              '{"business_id": "50", "name": "Dan\'s", "city": "Reno", "categories": "Cafes, Bars"}\n'},
             ["Dan's. Cafes, Bars, Reno"]),
    "RecBole": ({"x.inter": "user_id:token\titem_id:token\ttimestamp:float\n7\t50\t893286638.0\n",
                 "x.item": "item_id:token\tmovie_title:token_seq\tgenre:token_seq\n50\tUp\tAnimation Comedy\n"},
                ["Up. Animation Comedy"]),
    "RetailRocket": ({"events.csv": "timestamp,visitorid,event,itemid,transactionid\n1433221332117,7,view,50,\n",
                      "category_tree.csv": "categoryid,parentid\n1,2\n"}, [""]),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_data_sets_are_recognised(tmp_path, name):
    files, texts = PUBLIC[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    data = load(tmp_path, EventSettings())
    assert data.users == ["7"]
    assert data.items[0] == "50"
    assert data.texts == texts
    assert data.skipped.get("items_without_text", 0) == texts.count("")
    assert bool(data.warnings) == (texts == [""])


def test_a_file_alone_is_a_data_set_and_finds_its_items_beside_it(tmp_path):
    files, texts = PUBLIC["Amazon 2018"]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    assert load(tmp_path / "Beauty_5.jsonl.gz", EventSettings()).texts == texts
    (tmp_path / "meta_Beauty.jsonl.gz").unlink()
    alone = load(tmp_path / "Beauty_5.jsonl.gz", EventSettings())
    assert (alone.texts, len(alone.warnings)) == ([""], 1)


def test_another_encoding_is_refused_by_name_and_taken_when_named(tmp_path):
    write(tmp_path)
    (tmp_path / "events.csv").write_bytes("user_id,item_id,timestamp\nZoë,a,20\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"events\.csv is not UTF-8: byte 0xeb in line 2 or before.*cp1252"):
        load(tmp_path)
    assert load(tmp_path, EventSettings(earliest=date(1970, 1, 1), encoding="cp1252")).users == ["Zoë"]


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
