"""Public data sets and files as other programs write them: recognised, read and counted, or refused in a sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from models.data.loading import load_dataset
from schemas.errors import DataError
from schemas.settings import EventSettings

NOON = 1706702400
HEAD = "user_id,item_id,timestamp\n"
ROWS = f"u,i,{NOON}\nv,j,{NOON + 60}\n"
TWO = [("u", "i", NOON), ("v", "j", NOON + 60)]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def events(path: Path, **settings: Any) -> list[tuple[str, str, float]]:
    data = load_dataset(path, EventSettings(**settings))
    return [(data.users[user], data.items[item], time) for user, item, time in zip(
        data.events.user, data.events.item, data.events.time, strict=True)]


# file name → content; what is read
FILES: dict[str, tuple[dict[str, str], list[tuple[str, str, float]]]] = {
    "Taobao": ({"UserBehavior.csv": f"1,2268318,2520377,pv,{NOON}\n1,2333346,2520771,buy,{NOON + 60}\n"},
               [("1", "2268318", NOON), ("1", "2333346", NOON + 60)]),
    "YooChoose": ({"yoochoose-clicks.dat": "1,2024-01-31T12:00:00.000Z,214536502,0\n2,2024-01-31T12:01:00.000Z,7,S\n"},
                  [("1", "214536502", NOON), ("2", "7", NOON + 60)]),
    "Gowalla": ({"loc-gowalla_totalCheckins.txt": "0\t2024-01-31T12:00:00Z\t30.2\t-97.7\t22847\n"},
                [("0", "22847", NOON)]),
    "Foursquare": ({"dataset_TSMC2014_NYC.txt": "470\t49bbd6c0\t4bf5\tCafé\t40.7\t-74.0\t-240\t"
                                                "Wed Jan 31 12:00:00 +0000 2024\n"}, [("470", "49bbd6c0", NOON)]),
    "Last.fm": ({"userid-timestamp-artid-artname-traid-traname.tsv": "user_000001\t2024-01-31T12:00:00Z\tf1b1\t"
                 "Deep Dish\t\tA Song\nuser_000001\t2024-01-31T12:01:00Z\tf1b1\t\"Weird\"\tt2\tGo\n"},
                [("user_000001", "t2", NOON + 60)]),
    "Diginetica": ({"train-item-views.csv": "sessionId;userId;itemId;timeframe;eventdate\n1;NA;81766;5;2024-01-31\n"
                                            "2;9;31331;1031018;2024-01-31\n"},
                   [("9", "31331", NOON - 43200)]),  # the other's user is not known
    "KuaiRec": ({"big_matrix.csv": "user_id,video_id,play_duration,time,date,timestamp,watch_ratio\n"
                                   f"0,3649,13838,2024-01-31 20:00:00.0,20240131,{NOON}.0,1.27\n"},
                [("0", "3649", NOON)]),
    "H&M": ({"transactions_train.csv": "t_dat,customer_id,article_id,price,sales_channel_id\n"
                                       "2024-01-31,000058a1,0663713001,0.05,2\n",
             "articles.csv": "article_id,product_code,prod_name,product_type_name\n0663713001,663713,Top,Vest\n",
             "customers.csv": "customer_id,age\n000058a1,30\n"}, [("000058a1", "0663713001", NOON - 43200)]),
    "Steam": ({"steam_reviews.json": "{u'username': u'Chaos', u'hours': 11.7, u'product_id': u'328100', u'date': "
                                     "u'2024-01-31', u'text': u\"it's\"}\n",
               "steam_games.json": "{u'id': u'328100', u'title': u'Real Boxing\\u2122', u'genres': [u'Sports']}\n"},
              [("Chaos", "328100", NOON - 43200)]),
    "Goodreads": ({"goodreads_reviews_dedup.json": '{"user_id":"8842","book_id":"24375664","date_added":'
                                                   '"Wed Jan 31 04:00:00 -0800 2024"}\n',
                   "goodreads_books.json": '{"book_id":"24375664","title":"W.C. Fields: A Life"}\n'},
                  [("8842", "24375664", NOON)]),
    "Amazon 2014": ({"reviews_Beauty_5.json": '{"reviewerID":"A1","asin":"B1","overall":5.0,"unixReviewTime":'
                                              f'{NOON},"reviewTime":"01 31, 2024"}}\n',
                     "meta_Beauty.json": "{'asin': 'B1', 'title': \"L'Oreal\", 'categories': [['Beauty', 'Hair']]}\n"},
                    [("A1", "B1", NOON)]),
    "Amazon 2018": ({"Beauty_5.json": f'{{"reviewerID":"A1","asin":"B1","unixReviewTime":{NOON}}}\n',
                     "meta_Beauty.json": '{"asin":"B1","title":"Cream","category":["Beauty"]}\n'},
                    [("A1", "B1", NOON)]),
    "Amazon 2023": ({"All_Beauty.jsonl": f'{{"user_id":"A1","asin":"B2","parent_asin":"B1","timestamp":{NOON}000}}\n',
                     "meta_All_Beauty.jsonl": '{"parent_asin":"B1","title":"Cream","store":"X"}\n'},
                    [("A1", "B1", NOON)]),
    "Yelp": ({"yelp_academic_dataset_review.json": '{"user_id":"u","business_id":"b","date":"2024-01-31 12:00:00"}\n',
              "yelp_academic_dataset_business.json": '{"business_id":"b","name":"Café","categories":"Food, Tea"}\n'},
             [("u", "b", NOON)]),
    "RetailRocket": ({"events.csv": "timestamp,visitorid,event,itemid,transactionid\n"
                                    f"{NOON}000,257597,view,355908,\n{NOON + 60}000,992329,transaction,248676,4000\n",
                      "category_tree.csv": "categoryid,parentid\n1016,213\n"},
                     [("257597", "355908", NOON), ("992329", "248676", NOON + 60)]),
    "OTTO": ({"events.jsonl": f'{{"session":12,"events":[{{"aid":1,"ts":{NOON}000,"type":"clicks"}},'
                              f'{{"aid":2,"ts":{NOON + 60}000,"type":"carts"}}]}}\n',
              "items.jsonl": '{"item_id":1,"title":"One"}\n{"item_id":2,"title":"Two"}\n'},
             [("12", "1", NOON), ("12", "2", NOON + 60)]),
    "an archive's folder": ({"ml/ml-latest-small/ratings.csv": f"userId,movieId,rating,timestamp\n1,31,2.5,{NOON}\n",
                             "ml/ml-latest-small/movies.csv": "movieId,title,genres\n31,\"Minds, Dangerous\",Drama\n"},
                            [("1", "31", NOON)]),
    "Spark's parts": ({"events.csv/_SUCCESS": "", "events.csv/part-00000-a.csv": HEAD + f"u,i,{NOON}\n",
                       "events.csv/part-00001-a.csv": HEAD + f"v,j,{NOON + 60}\n",
                       "items.jsonl": '{"item_id":"i"}\n{"item_id":"j"}\n'}, TWO),
}


@pytest.mark.parametrize("name", FILES)
def test_data_sets_of_the_field_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    files, wanted = FILES[name]
    for file, content in files.items():
        put(tmp_path, file, content.encode("latin-1") if name == "Foursquare" else content)
    assert events(tmp_path) == wanted


@pytest.mark.parametrize("name", ["H&M", "Steam", "Goodreads", "Amazon 2014", "Amazon 2018", "Amazon 2023", "Yelp"])
def test_their_catalogues_are_found_beside_a_compressed_file_too(tmp_path: Path, name: str) -> None:
    files, wanted = FILES[name]
    paths = [put(tmp_path, f"{file}.gz", gzip.compress(content.encode())) for file, content in files.items()]
    data = load_dataset(paths[0])
    assert events(paths[0]) == wanted
    assert all(data.texts)
    assert not data.warnings


# how a file is written; all hold the same two events
FORMS: dict[str, bytes | str] = {
    "Excel's first line": "sep=;\n" + (HEAD + ROWS).replace(",", ";"),
    "quoted names": '"user_id","item_id","timestamp"\r\n' + ROWS.replace("\n", "\r\n"),
    "blanks around": " user_id , item_id , timestamp \n" + ROWS.replace(",", " , "),
    "capitals": "User ID,Item-ID,TimeStamp\n" + ROWS,
    "separators at the end": HEAD + ROWS.replace("\n", ",,\n"),
    "an index of pandas": ",user_id,item_id,timestamp\n" + "".join(
        f"{n},{row}\n" for n, row in enumerate(ROWS.splitlines())),
    "Hive": (HEAD + ROWS).replace(",", "\x01"),
    "blanks between": (HEAD + ROWS).replace(",", " "),
    "more blanks between": (HEAD + ROWS).replace(",", "   "),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + (HEAD + ROWS).encode(),
    "old Macintosh": (HEAD + ROWS).replace("\n", "\r"),
    "one object over lines": '{\n"events": [\n' + ",\n".join(
        f'{{"user_id":"{user}","item_id":"{item}","ts":{at}}}' for user, item, at in TWO) + "]}\n",
    "Python's dicts": "".join(f"{{'user_id': '{user}', 'item_id': u'{item}', 'ts': {at}}}\n" for user, item, at in TWO),
    "bz2": bz2.compress((HEAD + ROWS).encode()), "xz": lzma.compress((HEAD + ROWS).encode()),
    "gzip in two members": gzip.compress((HEAD + ROWS[:14]).encode()) + gzip.compress(ROWS[14:].encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_files_as_other_programs_write_them(tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    assert events(put(tmp_path, "log.csv", form)) == TWO


def test_values_that_say_there_is_none_make_no_user(tmp_path: Path) -> None:
    nothing = ["", "NA", "nan", "NaN", "null", "NULL", "None", "\\N", "<NA>", "N/A", "undefined"]
    path = put(tmp_path, "log.csv", HEAD + ROWS + "".join(f"{text},i,{NOON}\n" for text in nothing))
    assert events(path) == TWO
    data = load_dataset(path)
    assert data.skipped["log.csv: user_id: null or empty"] == len(nothing)


def test_numbers_of_tables_are_the_ids_of_texts(tmp_path: Path) -> None:
    path = put(tmp_path, "log.csv", HEAD + f"7,1,{NOON}\n7.0,2.00,{NOON}\n -7.0 ,3,{NOON}\n007,4,{NOON}\n70,5,{NOON}\n")
    assert {user for user, _, _ in events(path)} == {"7", "-7", "007", "70"}


@pytest.mark.parametrize("columns", [
    {"user_id": pyarrow.array([b"u", b"v"]), "item_id": ["i", "j"], "timestamp": [NOON, NOON + 60]},
    {"user_id": pyarrow.array(["u", "v"]).dictionary_encode(), "item_id": ["i", "j"],
     "timestamp": pyarrow.array([NOON * 10**9, (NOON + 60) * 10**9], pyarrow.timestamp("ns"))},
    {"user_id": ["u", "v"], "item_id": ["i", "j"],
     "timestamp": pyarrow.array([datetime.fromtimestamp(NOON + n, UTC) for n in (0, 60)])},
    {"user_id": ["u", "v"], "item_id": ["i", "j"], "timestamp": pyarrow.array(
        [datetime.fromtimestamp(NOON + n, UTC).replace(tzinfo=None) for n in (0, 60)], pyarrow.timestamp("us"))}])
def test_types_of_parquet(tmp_path: Path, columns: dict[str, Any]) -> None:
    path = tmp_path / "log.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    assert events(path) == TWO


def test_decimals_and_floats_of_parquet_are_whole_ids(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    parquet.write_table(pyarrow.table({
        "user_id": pyarrow.array([Decimal("7.00"), Decimal("8.50"), None], pyarrow.decimal128(9, 2)),
        "item_id": [1.0, 2.0, float("nan")], "timestamp": [NOON, NOON, NOON]}), path)
    assert events(path) == [("7", "1", NOON)]


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("ratings.csv", HEAD)
    return out.getvalue()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("ml-1m.zip", _zip, "a zip archive: unpack it"),
    ("shop.xlsx", _zip, "a workbook of Excel"),
    ("log.tar.gz", lambda: gzip.compress(b"x"), "a tar archive"),
    ("log.npy", lambda: b"\x93NUMPY\x01\x00", "NumPy"),
    ("log.pkl", lambda: b"\x80\x04\x95", "a pickle, which is never"),
    ("log.db", lambda: b"SQLite format 3\x00", "SQLite"), ("log.avro", lambda: b"Obj\x01\x04", "an Avro file"),
    ("log.xz", lambda: lzma.compress(b"x" * 99)[:40], "is damaged"),
    ("ratings.csv", lambda: b"A2SUAM1J3GNN3B,0000013714,5.0,1400457600\n", "FRESHET_EVENTS_COLUMNS names the columns"),
    ("goodreads.csv", lambda: b"user_id,book_id,is_read\n0,948,1\n", "no column 'event_time'"),
    ("combined_data_1.txt", lambda: b"1:\n1488844,3,2005-09-06\n", "no column 'user_id'"),
    ("behaviors.csv", lambda: b"user_id,item_id,time\nU1,N1,11/15/2019 8:55:22 AM\n", "is the month or the day first"),
    ("user_log.csv", lambda: b"user_id,item_id,time_stamp\n1,2,829\n", "no time between 1980-01-01"),
    ("log.json", lambda: b'{\n"a": 1}\n{\n"a": 2}\n', "write one object a line"),
])
def test_what_cannot_be_read_is_said_in_a_sentence(
    tmp_path: Path, name: str, content: Callable[[], bytes], message: str,
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        load_dataset(put(tmp_path, name, content()))
    assert "\n" not in str(refused.value)
