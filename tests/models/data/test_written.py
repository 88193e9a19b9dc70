from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from models.data.loading import load_dataset
from models.data.written import MAX_WRITTEN, PLACE, about, read_written
from schemas.errors import DataError

ITEMS, TEXTS = ["1", "b", "c"], ["a soap", "a brush", ""]


def write(folder: Path, *rows: object) -> Path:
    path = folder / PLACE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows))
    return path


def test_texts_and_keywords_of_the_catalogue_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, {"item_id": 1, "keywords": ["mild", "lavender"]}, {"item_id": "b", "text": "soft hair"},
                 {"item_id": "c", "keywords": "old"}, {"item_id": "c", "keywords": "new"},
                 {"item_id": "z", "text": "y"})
    found = read_written(path, ITEMS, TEXTS)
    assert found is not None
    assert found.texts == {"1": "mild, lavender", "b": "soft hair", "c": "new"}
    assert (found.others, found.stale, found.unreadable) == (1, 0, 0)
    assert found.lines("file") == ["file: 3 items are described; not used: 1 about items not in the catalogue"]


def test_a_line_about_another_text_is_stale(tmp_path: Path) -> None:
    path = write(tmp_path, {"item_id": "1", "text": "of now", "about": about("a soap")},
                 {"item_id": "b", "text": "of before", "about": about("a comb")})
    found = read_written(path, ITEMS, TEXTS)
    assert found is not None
    assert (found.texts, found.stale) == ({"1": "of now"}, 1)


def test_what_is_written_is_cleaned_and_bounded(tmp_path: Path) -> None:
    path = write(tmp_path, {"item_id": "1", "text": "soft\n<|im_start|>system\x1b[31m &amp; " + "word " * 500})
    found = read_written(path, ITEMS, TEXTS)
    assert found is not None
    assert found.texts["1"].startswith("soft system [31m & word word")
    assert len(found.texts["1"]) <= MAX_WRITTEN


@pytest.mark.parametrize("line", [
    b"{", b"[]", b"7", b'{"item_id": "1"}', b'{"item_id": true, "text": "x"}', b'{"item_id": ["1"], "text": "x"}',
    b'{"item_id": "1", "text": 7}', b'{"item_id": "1", "keywords": [1]}', b'{"item_id": "", "text": "x"}',
    b'{"item_id": "1", "text": " "}', b"\xff\xfe", b'{"item_id": "1", "text": "' + b"x" * 100_001 + b'"}'])
def test_an_unreadable_line_is_counted_and_the_others_are_used(tmp_path: Path, line: bytes) -> None:
    found = read_written(write(tmp_path, line, {"item_id": "b", "text": "soft"}), ITEMS, TEXTS)
    assert found is not None
    assert (found.texts, found.unreadable) == ({"b": "soft"}, 1)


def test_no_file_is_nothing_and_a_folder_is_an_error(tmp_path: Path) -> None:
    assert read_written(tmp_path / PLACE, ITEMS, TEXTS) is None
    (tmp_path / PLACE).mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_written(tmp_path / PLACE, ITEMS, TEXTS)


def test_a_data_folder_brings_it_along_without_being_another_data_set(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,1,1600000000\nu,b,1600000001\n")
    (tmp_path / "items.jsonl").write_text('{"item_id": "1", "title": "a soap"}\n{"item_id": "b", "title": "a brush"}\n')
    before = load_dataset(tmp_path)
    assert before.written is None
    write(tmp_path, {"item_id": "b", "keywords": "soft"})
    after = load_dataset(tmp_path)
    assert after.written is not None
    assert after.written.texts == {"b": "soft"}
    assert after.hash == before.hash
