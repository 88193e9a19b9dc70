"""Reads a data set into columns: `events.csv` (user events) and `items.jsonl` (the catalogue).

Unusable input either raises an error that names file and column, or is skipped and counted. Nothing is dropped
silently.
"""

from __future__ import annotations

import csv
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import DataError
from schemas.events import MAX_EVENT_TIME

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

EVENT_COLUMNS = ("user_id", "item_id", "timestamp")
DEFAULT_TYPE = "interaction"
MAX_ID = 256  # as in schemas.events.Identifier; the stream sends longer ids to dead-letters
MAX_TITLE = 160  # characters; on Beauty the 99% quantile of titles is 150 and the longest has 879
MAX_TEXT = 320

# Control, formatting and direction characters, and markup that a chat template might read as a new turn.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffd\ud800-\udfff]"
    r"|</?[|\w][^<>]{0,40}>"
)
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Events:
    """Columns of n events, oldest first; events with equal times keep the order of the file.

    Args:
        user, item: (n,) rows of `Dataset.users`, `Dataset.items`.
        time: (n,) seconds since 1970.
        type: (n,) rows of `Dataset.types`.
    """

    user: IntArray
    item: IntArray
    time: FloatArray
    type: IntArray

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> Events:
        return Events(self.user[rows], self.item[rows], self.time[rows], self.type[rows])


@dataclass(frozen=True, slots=True)
class Dataset:
    """Events, and the ids behind their row numbers.

    Args:
        users, items, types: ids by row. Items of the catalogue come first, in its order, then items that occur only in
            events.
        texts: cleaned catalogue text of each item, "" for items without text.
        skipped: number of skipped or incomplete records by reason.
        hash: SHA-256 of both files' bytes.
    """

    events: Events
    users: list[str]
    items: list[str]
    types: list[str]
    texts: list[str]
    skipped: dict[str, int]
    hash: str


def load(folder: Path) -> Dataset:
    """Read `folder`/events.csv and `folder`/items.jsonl.

    Bad rows are skipped and counted. Items without a catalogue entry or text stay and are counted as
    `items_without_text`. Rows that are equal in every column are one event, as in the stream (same event id).

    Raises:
        DataError: a file or column is missing, or a file has no usable row.
    """
    events_path, items_path = folder / "events.csv", folder / "items.jsonl"
    for path in (events_path, items_path):
        if not path.is_file():
            raise DataError(f"{path} is missing; a data set is a folder with events.csv and items.jsonl")
    skipped: Counter[str] = Counter()
    catalogue = _read_items(items_path, skipped)
    item_rows = {item: row for row, item in enumerate(catalogue)}
    user_rows: dict[str, int] = {}
    type_rows: dict[str, int] = {}
    rows: dict[tuple[int, int, float, int], None] = {}  # an ordered set
    for user, item, moment, kind in _read_events(events_path, skipped):
        row = (
            user_rows.setdefault(user, len(user_rows)), item_rows.setdefault(item, len(item_rows)), moment,
            type_rows.setdefault(kind, len(type_rows)),
        )
        if row in rows:
            skipped["events: duplicate"] += 1
        rows[row] = None
    if not rows:
        raise DataError(f"{events_path} has no usable event ({dict(skipped) or 'it is empty'})")
    columns = np.array(list(rows), dtype=np.float64)  # rows stay exact: ids count far below 2^53
    columns = columns[np.argsort(columns[:, 2], kind="stable")]
    ints = columns.astype(np.int64)
    texts = [catalogue.get(item, "") for item in item_rows]
    without_text = sum(not text for text in texts)
    if without_text:
        skipped["items_without_text"] = without_text
    return Dataset(
        Events(ints[:, 0].copy(), ints[:, 1].copy(), columns[:, 2].copy(), ints[:, 3].copy()),
        list(user_rows), list(item_rows), list(type_rows), texts, dict(skipped), _hash(events_path, items_path),
    )


def split(dataset: Dataset, fraction: float) -> tuple[Events, Events]:
    """Return the first `fraction` of the events by time, and the rest.

    Raises:
        DataError: one of the two parts would be empty.
    """
    cut = int(len(dataset.events) * fraction)
    if cut in {0, len(dataset.events)}:
        raise DataError(f"{len(dataset.events)} events cannot be split at {fraction}")
    return dataset.events[:cut], dataset.events[cut:]


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` on one line, without control characters and markup, at most `limit` characters."""
    if "&" in text:
        text = html.unescape(text)
    text = _SPACES.sub(" ", _UNSAFE.sub(" ", text)).strip()
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0]


def item_text(title: Any, attributes: Any) -> str:
    """Return the text of an item: its title, then its attributes (a list or a dict), cleaned."""
    head = clean(title, MAX_TITLE) if isinstance(title, str) else ""
    if isinstance(attributes, dict):
        parts = [f"{key}: {_flat(value)}" for key, value in attributes.items() if _flat(value)]
    elif isinstance(attributes, list):
        parts = [_flat(value) for value in attributes if _flat(value)]
    else:
        parts = [_flat(attributes)] if attributes else []
    return clean(". ".join(part for part in (head, ", ".join(parts)) if part))


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_flat(part) for part in value)
    return str(value) if isinstance(value, (str, int, float)) else ""


def _read_items(path: Path, skipped: Counter[str]) -> dict[str, str]:
    out: dict[str, str] = {}
    lines = 0
    with path.open("rb") as source:
        for line in source:
            if not line.strip():
                continue
            lines += 1
            try:
                item = json.loads(line)
            except ValueError:
                skipped["items: not JSON"] += 1
                continue
            key = str(item.get("item_id", "")) if isinstance(item, dict) else ""
            if not 0 < len(key) <= MAX_ID:
                skipped["items: no usable item_id"] += 1
            elif key in out:
                skipped["items: duplicate item_id"] += 1
            else:
                out[key] = item_text(item.get("title"), item.get("attributes"))
    if not out:
        raise DataError(f"{path} has no usable item" + (
            "; each line is a JSON object with item_id, title and attributes" if lines else "; it is empty"))
    return out


def _read_events(path: Path, skipped: Counter[str]) -> Iterator[tuple[str, str, float, str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as source:
        reader = csv.reader(source)
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise DataError(f"{path} is empty; its first line is user_id,item_id,timestamp[,event_type]")
        for name in EVENT_COLUMNS:
            if name not in header:
                raise DataError(f"{path} has no column {name!r}; it has {', '.join(header)[:200]}")
        user_at, item_at, time_at = (header.index(name) for name in EVENT_COLUMNS)
        type_at = header.index("event_type") if "event_type" in header else -1
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error:  # a NUL byte or an endless field
                skipped["events: not CSV"] += 1
                continue
            if not row:
                continue
            if len(row) != len(header):
                skipped["events: wrong number of columns"] += 1
                continue
            user, item = row[user_at], row[item_at]
            if not (0 < len(user) <= MAX_ID and 0 < len(item) <= MAX_ID):
                skipped["events: no usable user_id or item_id"] += 1
                continue
            moment = _seconds(row[time_at])
            if moment is None:
                skipped["events: timestamp not in seconds or ISO 8601"] += 1
                continue
            yield user, item, moment, (row[type_at][:64] if type_at >= 0 else "") or DEFAULT_TYPE


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            return None
        value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return value if math.isfinite(value) and 0 <= value < MAX_EVENT_TIME else None


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()
