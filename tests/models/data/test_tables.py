"""Rows out of every kind of file; what is broken is one row in the account."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from models.data.account import Account
from models.data.tables import read_table, separator_of
from schemas.errors import DataError

ROWS = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]


def read(path: Path, **more: object) -> tuple[list[dict], Account]:
    account = Account(path.name)
    return [dict(row) for _, row in read_table(path, account, **more)], account


def written(folder: Path, content: bytes | str, name: str = "table") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("text", [
    "a,b\n1,x\n2,y\n", "a;b\n1;x\n2;y\n", "a\tb\n1\tx\n2\ty\n", "a::b\n1::x\n2::y\n", "a|b\n1|x\n2|y",
    "a,b\r\n1,x\r\n2,y\r\n",
    "\ufeffa,b\n1,x\n2,y\n", "\n\na,b\n1,x\n\n2,y\n", '"a","b"\n"1","x"\n2,"y"\n', "a:token\tb:token_seq\n1\tx\n2\ty\n",
    '{"a": "1", "b": "x"}\n\n{"a": "2", "b": "y"}\n',
    '[{"a": "1", "b": "x"},\n {"a": "2", "b": "y"}]', "a,b\r1,x\r2,y\r",
])
def test_the_same_rows_in_every_text_format(tmp_path: Path, text: str) -> None:
    rows, account = read(written(tmp_path, text))
    assert rows == ROWS
    assert (account.read, account.skipped) == (2, {})


def test_compressed_and_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    text = b"a,b\n1,x\n2,y\n"
    assert read(written(tmp_path, gzip.compress(text)))[0] == ROWS
    with pyarrow.OSFile(str(tmp_path / "z"), "wb") as raw, pyarrow.CompressedOutputStream(raw, "zstd") as sink:
        sink.write(text)
    assert read(tmp_path / "z")[0] == ROWS
    parquet.write_table(pyarrow.table({"a": ["1", "2"], "b": ["x", "y"]}), tmp_path / "p")
    rows, account = read(tmp_path / "p")
    assert rows == ROWS
    assert account.columns == ("a", "b")


def test_a_file_without_header_has_its_columns_named(tmp_path: Path) -> None:
    assert read(written(tmp_path, "1::x\n2::y\n"), columns=("a", "b"))[0] == ROWS


@pytest.mark.parametrize(("text", "good", "reasons"), [
    ('a,b\n1,"open\n2,y\n3,z\n', ["2", "3"], {"a quote is not closed": 1}),
    ('a,b\n1,"open\n2,y\n3,"also\n4,z\n', ["2", "4"], {"a quote is not closed": 2}),
    ('a,b\n1,x\n2,"last', ["1"], {"a quote is not closed": 1}),
    ('a,b\n1,"two\nlines"\n2,y\n', ["1", "2"], {}),
    ('a,b\n1,"a ""quoted"" word"\n2,"x, y"\n', ["1", "2"], {}),
    ('a,b\n1,12" vinyl\n2,"x"y\n', ["1", "2"], {}),
    ("a,b\n1\n2,y,z\n3,w\n", ["3"], {"1 columns where the header has 2": 1, "3 columns where the header has 2": 1}),
    ('{"a": 1}\n{"a": \n[1]\n{"a": 3}\n', [1, 3], {"not JSON": 1, "not an object": 1}),
    ('[{"a": 1}, 2]', [1], {"not an object": 1}),
    (f'a,b\n1,"{"x" * 300_000}"\n2,y\n', ["1", "2"], {}),
    ("a,b\n1,x\x00\n2,y\n", ["1", "2"], {}),
])
def test_a_broken_row_is_one_row_and_counted(tmp_path: Path, text: str, good: list, reasons: dict[str, int]) -> None:
    rows, account = read(written(tmp_path, text))
    assert [row["a"] for row in rows] == good
    assert {reason: skipped.count for reason, skipped in account.skipped.items()} == reasons
    assert account.read == len(good) + sum(reasons.values())


@pytest.mark.parametrize("open_at", range(2, 40, 5))
def test_an_unclosed_quote_costs_one_row_wherever_it_is(tmp_path: Path, open_at: int) -> None:
    lines = ["user,item,at,text"] + [f'u{n},i{n},{n},"fine, {n}"' for n in range(1, 40)]
    lines[open_at] = f'u{open_at},i{open_at},{open_at},"great buy'
    rows, account = read(written(tmp_path, "\n".join(lines)))
    # The following line closes the quote, so this one and the next cannot be told from one broken row.
    assert len(rows) >= 37
    assert account.skipped["a quote is not closed"].line == open_at + 1


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"), (b"\n \n", "is empty"), ("a,b\nZoë,x\n".encode("latin-1"), "is not UTF-8: byte 0xeb"),
    ("a,b\n1,x\n".encode("utf-16"), "encoded as UTF-16"), (b"[1", "no JSON array"), (b"\x1f\x8b\x08broken", "damaged"),
    (b"PAR1 broken", "no readable Parquet"),
])
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, content))


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\nZoë,x\n".encode("cp1252"))
    assert read(path, encoding="cp1252")[0] == [{"a": "Zoë", "b": "x"}]
    with pytest.raises(DataError, match="there is no encoding 'klingon'"):
        read(path, encoding="klingon")


def test_a_folder_or_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(DataError, match="is missing"):
        read(tmp_path / "none")


def test_separators() -> None:
    assert [separator_of(line) for line in ("a", "a,b", "a;b", "a\tb,c\td", "a::b::c", '"a,b,c";d')] == [
        ",", ",", ";", "\t", "::", ";"]


def test_the_account_shows_the_first_row_of_each_reason(tmp_path: Path) -> None:
    text = "a,b\n1,x\n\x1b[31mred\n" + json.dumps([1]) + "\n"
    _, account = read(written(tmp_path, text))
    account.used = 1
    assert account.lines() == ["table: 3 rows read, 1 used",
                               "  2 skipped: 1 columns where the header has 2 (first in line 3: \ufffd[31mred)"]
