"""Reads a data set into columns. Nothing is dropped silently: each row that is not used is in an account."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.data.account import Account
from models.data.dataset import Dataset, Events
from models.data.layouts import ITEM_NAMES, OWN, Layout, Table, parts_of, recognise
from models.data.tables import Row, read_table
from models.data.texts import item_text, item_title
from models.data.written import PLACE, read_written
from schemas.errors import DataError, PoisonError
from schemas.reading.fields import NAMES, identifier, lookup, plain_name
from schemas.reading.reader import EventReader, ReadEvent
from schemas.settings import EventSettings

AHEAD_S = 86_400.0  # events further ahead of the clock are refused, as in the stream (`state.future_s`)
_WHOLE = re.compile(r"(-?\d+)\.0+")  # pandas writes a column of numbers with a gap as floats: 7.0 is item 7
# What programs write into a file for no value.
_NOTHING = frozenset({"", "NA", "N/A", "<NA>", "nan", "NaN", "null", "NULL", "None", "\\N", "undefined"})


def load_dataset(path: Path, settings: EventSettings | None = None, now: float | None = None) -> Dataset:
    """Read a data set: a folder with events.csv and items.jsonl, a public data set, or a file of events.

    A folder may have `knowledge/items.jsonl`, too (`models.data.written`). The data set's hash does not depend on it.

    Args:
        settings: where an event's fields are, how files are encoded; None = the defaults.
        now: the clock, seconds since 1970; later events are refused. None = now.

    Rows that are equal in user, item, time and type are one event, as in the stream (same event id). Items without a
    catalogue entry or text stay and are counted as `items_without_text`.

    Raises:
        DataError: a file or column is missing, a file has no usable row, or no event's item is in the catalogue.
    """
    settings = settings or EventSettings()
    layout = recognise(path)
    catalogue, titles, accounts = _catalogue(layout, settings)
    account = Account(layout.events.path.name)
    item_rows = {item: row for row, item in enumerate(catalogue)}
    user_rows: dict[str, int] = {}
    type_rows: dict[str, int] = {}
    rows: dict[tuple[int, int, float, int], None] = {}  # an ordered set
    for number, event in read_events(layout.events, account, settings, now):
        row = (user_rows.setdefault(event.user_id, len(user_rows)),
               item_rows.setdefault(event.item_id, len(item_rows)), event.event_time,
               type_rows.setdefault(event.event_type, len(type_rows)))
        if row in rows:
            account.skip("the same event again", number, f"{event.user_id}, {event.item_id}, {event.event_time:g}")
            continue
        rows[row] = None
        account.used += 1
    if not rows:
        if account.columns:
            _reader(dict.fromkeys(account.columns), account, settings)  # raises if a column is not there
        raise DataError(f"{layout.events.path} has no usable event. " + " ".join(account.lines()))
    columns = np.array(list(rows), dtype=np.float64)  # rows stay exact: ids count far below 2^53
    columns = columns[np.argsort(columns[:, 2], kind="stable")]
    ints = columns.astype(np.int64)
    texts = [catalogue.get(item, "") for item in item_rows]
    skipped = {f"{of.name}: {reason}": rows.count for of in (*accounts, account) for reason, rows in of.skipped.items()}
    without_text = sum(not text for text in texts)
    if without_text:
        skipped["items_without_text"] = without_text
    return Dataset(
        Events(ints[:, 0].copy(), ints[:, 1].copy(), columns[:, 2].copy(), ints[:, 3].copy()),
        list(user_rows), list(item_rows), list(type_rows), texts, skipped,
        _hash([table.path for table in (layout.events, layout.items) if table is not None], settings),
        (*accounts, account), tuple(_warnings(layout, catalogue, ints[:, 1], list(item_rows), without_text)),
        read_written(path / PLACE, list(item_rows), texts), [titles.get(item, "") for item in item_rows])


def read_events(
    table: Table, account: Account, settings: EventSettings, now: float | None = None,
) -> Iterator[tuple[int, ReadEvent]]:
    """Yield the events of a file with their lines; other rows are skipped in the account.

    Raises:
        DataError: the file cannot be read, or it has no column for a user, an item or a time.
    """
    rows = _rows(table, account, settings, settings.column_names or table.columns)
    for number, _, event in events_of(rows, account, settings, now):
        yield number, event


def events_of(
    rows: Iterable[Row], account: Account, settings: EventSettings, now: float | None = None,
) -> Iterator[tuple[int, Mapping[str, Any], ReadEvent]]:
    """Yield lines, rows and the events in them: one, or those of a tracker's envelope. Others are skipped.

    Raises:
        DataError: all rows have the same columns, and none for a user, an item or a time.
    """
    latest = (time.time() if now is None else now) + AHEAD_S
    readers: dict[tuple[str, ...], EventReader | None] = {}  # by the names of a row: JSON's may differ
    enveloped = EventReader(settings)
    for number, row in rows:
        names = tuple(row)
        if names not in readers:
            readers[names] = _reader(row, account, settings)
        reader = readers[names]
        try:
            if reader is None:
                found, reason = enveloped.object(row, latest=latest)
            else:
                found, reason = [reader.row({name: _tidy(value) for name, value in row.items()}, latest)], ""
        except PoisonError as error:
            found, reason = [], error.reason
        if reason:
            account.skip(reason.split("; the event has")[0], number, _shown(row))
        for event in found:
            yield number, row, event


def _reader(row: Mapping[str, Any], account: Account, settings: EventSettings) -> EventReader | None:
    """Return the reader for rows with these names, None if they may be an envelope.

    What the settings do not say is found by the columns' names.
    """
    places: dict[Any, tuple[str, ...]] = {
        field: found for field in NAMES if field not in settings.fields and (found := _columns(row, NAMES[field])[:1])}
    missing = [field for field in ("user_id", "item_id", "event_time") if field not in {**settings.fields, **places}]
    if not missing:
        return EventReader(replace(settings, envelope="none"), places=places)
    if account.columns:
        raise DataError(
            f"{account.name} has no column {missing[0]!r}; it has {', '.join(account.columns)[:300]}. "
            f"FRESHET_EVENTS_FIELDS={missing[0]}=NAME says which it is; FRESHET_EVENTS_COLUMNS names the columns of a "
            "file without a header")
    return None


def _columns(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns with one of these names, in the names' order."""
    there = {plain_name(str(name)): name for name in row}
    return tuple(there[name] for name in names if name in there)


def _column(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return next(iter(_columns(row, names)), "")


def _rows(table: Table, account: Account, settings: EventSettings, columns: Sequence[str]) -> Iterator[Row]:
    return read_table(table.path, account, encoding=settings.encoding or table.encoding, columns=columns,
                      separator=table.separator)


def _tidy(value: Any) -> Any:
    """Return a file's value as the reader takes it: without blanks around it, 7.0 as 7, None for no value."""
    if isinstance(value, bytes):  # Parquet without a type for texts
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, str):
        value = value.strip()
        if value in _NOTHING:
            return None
        return whole[1] if value.endswith("0") and (whole := _WHOLE.fullmatch(value)) else value
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN


def _catalogue(
    layout: Layout, settings: EventSettings,
) -> tuple[dict[str, str], dict[str, str], tuple[Account, ...]]:
    """Return text and title of each item of the catalogue, in its order; {} for a data set without one."""
    table = layout.items
    if table is None:
        return {}, {}, ()
    account = Account(table.path.name)
    out: dict[str, str] = {}
    titles: dict[str, str] = {}
    id_at = ""
    for number, row in _rows(table, account, settings, table.columns):
        id_at = _column(row, ITEM_NAMES["item_id"]) or id_at
        value = _tidy(lookup(row, id_at)) if id_at else None
        try:
            key = identifier(value)
        except ValueError as error:
            account.skip(f"item_id: {error}", number, _shown(row))
            continue
        if key in out:
            account.skip("the item_id is there already", number, _shown(row))
            continue
        titles[key] = item_title(row.get(_column(row, ITEM_NAMES["title"]) or ""))
        more = row.get("text") if layout.name == OWN else ""
        out[key] = item_text(*described(row, table.lists, layout.flags), more if isinstance(more, str) else "")
        account.used += 1
    if not out:
        raise DataError(f"{table.path} has no usable item; each line is an object with item_id, title and attributes. "
                        + " ".join(account.lines()))
    return out, titles, (account,)


def described(row: Mapping[str, Any], lists: str = "", flags: Sequence[str] = ()) -> tuple[Any, Any]:
    """Return the title and the attributes in a row of a catalogue, whatever their columns are called.

    Args:
        lists, flags: as in `models.data.layouts`.
    """
    title = row.get(_column(row, ITEM_NAMES["title"]) or "")
    attributes: Any = [name for name in flags if str(row.get(name)) == "1" and name != "unknown"]
    if not flags:
        found = [row[name] for wanted in ITEM_NAMES["attributes"] if (name := _column(row, (wanted,)))]
        if "attributes" in row:
            found = [row["attributes"]]
        # One field is taken as it is written (a list, or names with values); several become one list.
        attributes = found[0] if len(found) == 1 else [part for value in found for part in _parts(value)]
        if lists and isinstance(attributes, str):
            attributes = [part.strip() for part in attributes.split(lists)]
        elif lists and isinstance(attributes, list):
            attributes = [part.strip() for value in attributes for part in str(value).split(lists)]
    return title, attributes


def named_item(row: Mapping[str, Any]) -> Any:
    """Return what stands in a row's column for the item's id, None if it has no such column."""
    name = _column(row, ITEM_NAMES["item_id"])
    return _tidy(lookup(row, name)) if name else None


def _parts(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]


def _warnings(
    layout: Layout, catalogue: Mapping[str, str], events: Any, items: Sequence[str], without_text: int,
) -> Iterator[str]:
    """Yield what is probably not meant.

    Raises:
        DataError: no event's item is in the catalogue.
    """
    if not catalogue:
        yield f"{layout.name}: there are no texts of items, so words and language models have nothing to read"
        return
    used = sorted(set(events.tolist()))
    known = sum(row < len(catalogue) for row in used)
    if 2 * known < len(used):
        strange = [items[row] for row in used if row >= len(catalogue)][:3]
        text = (f"{known:,} of {len(used):,} items of the events are in the catalogue: the events have "
                f"{', '.join(map(repr, strange))}, the catalogue has {', '.join(map(repr, list(catalogue)[:3]))}")
        if not known:
            raise DataError(text)
        yield text
    elif 2 * without_text > len(items):
        yield f"{without_text:,} of {len(items):,} items have no text"


def _shown(row: Mapping[str, Any]) -> str:
    return ", ".join(str(value) for value in row.values())


def _hash(paths: Iterable[Path], settings: EventSettings) -> str:
    digest = hashlib.sha256()
    if settings != EventSettings():  # the same bytes read in another way are other data
        digest.update(repr(settings).encode())
    for path in [part for table in paths for part in parts_of(table) or [table]]:
        with path.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()
