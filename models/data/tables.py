"""Rows of a file with named columns, whatever it is: separated values, JSON lines, a JSON array, Parquet.

A broken row is one row in the account. An unclosed quote, which a plain CSV reader follows to the end of the file, ends
with its own line.
"""

from __future__ import annotations

import ast
import csv
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pydantic_core

from models.data.account import Account
from models.data.layouts import parts_of
from models.data.opening import is_parquet, opened, read_parquet
from schemas.errors import DataError

Row = tuple[int, Mapping[str, Any]]  # number of the line (of Parquet's row), from 1; values by column
SEPARATORS = ("\t", "::", ";", "|", "\x01", ",")  # \x01: Hive; a blank only where there is none of these
# A quoted text may run over several lines, an unclosed quote would run on for ever.
_LONGEST_RECORD = 100  # lines
_LONGEST_LITERAL = 1 << 20  # characters
_DICT = re.compile(r"""\s*\{\s*u?['"]""")
_EXCEL = re.compile(r"sep=(.)")  # Excel's first line
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
    if parts := parts_of(path):
        for part in parts:
            yield from read_table(part, account, encoding=encoding, columns=columns, separator=separator)
        return
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
    if (stated := _EXCEL.fullmatch(first.strip('"'))) is not None:
        separator, first, number = stated[1], next(lines, ""), number + 1
    rest = chain([first], lines)
    if first.strip() == "{":
        yield from _json_whole(rest, account)
    elif first.lstrip().startswith("["):
        yield from _json_array(rest, account)
    elif first.lstrip().startswith("{"):
        yield from _json_lines(enumerate(rest, number), account)
    else:
        yield from _separated(enumerate(rest, number), account, columns, separator or separator_of(first))


def separator_of(line: str) -> str:
    """Return what separates the values of a line: the candidate that is there most often; else a blank, or `,`."""
    bare = "".join(part for n, part in enumerate(line.split('"')) if n % 2 == 0)
    best = max(reversed(SEPARATORS), key=bare.count)
    return best if best in bare or " " not in bare.strip() else " "


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
        if len(values) > width and not any(map(str.strip, values[width:])):
            values = values[:width]  # separators at the end of the line
        if len(values) != width:
            account.skip(f"{len(values)} columns where the header has {width}", number, line)
            continue
        yield number, dict(zip(names, values, strict=True))


def _split(line: str, separator: str) -> list[str] | None:
    """Return the values of a line, None if a quote in it is not closed."""
    if '"' not in line or len(separator) > 1:  # "::" never comes with quotes
        return line.split() if separator == " " else line.split(separator)
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


def _literal(line: str) -> Any:
    """Return a Python dict written as text, as Amazon's catalogue of 2014 and Steam's data are; None if it is none."""
    if not _DICT.match(line) or len(line) > _LONGEST_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that escapes nothing
            return ast.literal_eval(line.strip())  # literals only, nothing is called
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


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


def _json_whole(lines: Iterator[str], account: Account) -> Iterator[Row]:
    """Yield the rows of one object over many lines, or of the one list of objects in it."""
    text = "\n".join(lines)
    try:
        whole = pydantic_core.from_json(text)
    except ValueError as error:  # objects over several lines each: not a form that anything else reads
        raise DataError(f"{account.name} is no JSON: {error}; write one object a line, or an array") from None
    lists = [value for value in whole.values() if isinstance(value, list) and value
             and all(isinstance(one, dict) for one in value)]
    for number, row in enumerate(lists[0] if len(lists) == 1 else [whole], 1):
        account.read += 1
        yield number, row


def _object(number: int, line: str, account: Account) -> Iterator[Row]:
    try:
        row = pydantic_core.from_json(line)
    except ValueError:
        row = _literal(line)
        if row is None:
            account.skip("not JSON", number, line)
            return
    if isinstance(row, dict):
        yield number, row
    else:
        account.skip("not an object", number, line)
