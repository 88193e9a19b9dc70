"""Rows of a file with named columns, whatever it is: separated values, JSON lines, a JSON array, Parquet.

A broken row is one row in the account. An unclosed quote, which a plain CSV reader follows to the end of the file, ends
with its own line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pydantic_core

from models.data.account import Account
from models.data.opening import is_parquet, opened, read_parquet
from schemas.errors import DataError

Row = tuple[int, Mapping[str, Any]]  # number of the line (of Parquet's row), from 1; values by column
SEPARATORS = ("\t", "::", ";", "|", ",")
# A quoted text may run over several lines, an unclosed quote would run on for ever.
_LONGEST_RECORD = 100  # lines
csv.field_size_limit(16 << 20)  # bytes; of text that somebody wrote 131,072, the default, can be one field


def read_table(
    path: Path, account: Account, *, encoding: str = "", columns: Sequence[str] = (), separator: str = "",
) -> Iterator[Row]:
    """Yield the rows of a file; what is no row is skipped in `account`, which counts all.

    Args:
        encoding: as for `opened`.
        columns: names of the columns of a file without a header; () = the first line has them.
        separator: between values; "" = found in the first line.

    Raises:
        DataError: the file is missing, empty, damaged, or not in the encoding.
    """
    if is_parquet(path):
        for number, row in enumerate(read_parquet(path), 1):
            account.read += 1
            account.columns = account.columns or tuple(row)
            yield number, row
        return
    with opened(path, encoding) as lines:
        yield from read_lines(lines, account, columns=columns, separator=separator)


def read_lines(
    lines: Iterator[str], account: Account, *, columns: Sequence[str] = (), separator: str = "",
) -> Iterator[Row]:
    """Yield the rows of text lines, as `read_table` does."""
    number = 0
    for first in lines:
        number += 1
        if first.strip():
            break
    else:
        raise DataError(f"{account.name} is empty")
    rest = chain([first], lines)
    if first.lstrip().startswith("["):
        yield from _json_array(rest, account)
    elif first.lstrip().startswith("{"):
        yield from _json_lines(enumerate(rest, number), account)
    else:
        yield from _separated(enumerate(rest, number), account, columns, separator or separator_of(first))


def separator_of(line: str) -> str:
    """Return what separates the values of a line: the candidate that is there most often, `,` if none is."""
    bare = "".join(part for n, part in enumerate(line.split('"')) if n % 2 == 0)
    return max(reversed(SEPARATORS), key=bare.count)


def header(names: Iterable[str]) -> list[str]:
    """Return column names as rows use them: without blanks and quotes, and without RecBole's `:type` behind them."""
    out = []
    for name in names:
        bare, colon, kind = name.strip().strip('"').partition(":")
        out.append(bare if kind in {"token", "float", "token_seq", "float_seq"} and colon else name.strip().strip('"'))
    return out


def _separated(
    lines: Iterator[tuple[int, str]], account: Account, columns: Sequence[str], separator: str,
) -> Iterator[Row]:
    names = list(columns) or header(_split(next(lines)[1], separator) or [])
    account.columns = tuple(names)
    width = len(names)
    waiting: list[tuple[int, str]] = []  # lines looked at for the end of a quote, that turned out to be rows
    while True:
        number, line = waiting.pop(0) if waiting else next(lines, (0, ""))
        if not number:
            return
        if not line.strip():
            continue
        account.read += 1
        values = _split(line, separator)
        if values is None:
            values, waiting = _over_lines(line, waiting, lines, separator, width)
            if values is None:
                account.skip("a quote is not closed", number, line)
                continue
        if len(values) != width:
            account.skip(f"{len(values)} columns where the header has {width}", number, line)
            continue
        yield number, dict(zip(names, values, strict=True))


def _split(line: str, separator: str) -> list[str] | None:
    """Return the values of a line, None if a quote in it is not closed."""
    if '"' not in line:
        return line.split(separator)
    if len(separator) > 1:  # "::" never comes with quotes
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error as error:
        if "unexpected end" in str(error):
            return None
    try:
        return next(csv.reader([line], delimiter=separator), [])  # a quote within a value: taken as it stands
    except csv.Error:  # the end of a line outside quotes
        return []


def _over_lines(
    line: str, waiting: list[tuple[int, str]], lines: Iterator[tuple[int, str]], separator: str, width: int,
) -> tuple[list[str] | None, list[tuple[int, str]]]:
    """Return the values of a record whose quoted text runs on over following lines, and the lines not used.

    None if it does not: the quote stays open, or a line on the way is a whole row by itself (then the quote was never
    meant to be open, and following it would swallow that row).
    """
    looked: list[tuple[int, str]] = []
    while len(looked) < _LONGEST_RECORD:
        number, following = waiting.pop(0) if waiting else next(lines, (0, ""))
        if not number:
            break
        looked.append((number, following))
        if '"' not in following and following.count(separator) == width - 1 > 0:
            break
        values = _split("\n".join([line, *(text for _, text in looked)]), separator)
        if values is not None:
            if len(values) != width:
                break
            return values, waiting
    return None, looked + waiting


def _json_lines(lines: Iterator[tuple[int, str]], account: Account) -> Iterator[Row]:
    for number, line in lines:
        if line.strip():
            account.read += 1
            yield from _object(number, line, account)


def _json_array(lines: Iterator[str], account: Account) -> Iterator[Row]:
    try:
        rows = pydantic_core.from_json("\n".join(lines))
    except ValueError as error:
        raise DataError(f"{account.name} is no JSON array: {error}") from None
    for number, row in enumerate(rows, 1):
        account.read += 1
        if isinstance(row, dict):
            yield number, row
        else:
            account.skip("not an object", number, row)


def _object(number: int, line: str, account: Account) -> Iterator[Row]:
    try:
        row = pydantic_core.from_json(line)
    except ValueError:
        account.skip("not JSON", number, line)
        return
    if isinstance(row, dict):
        yield number, row
    else:
        account.skip("not an object", number, line)
