"""Written knowledge of items on disk: one JSON object a line, from `freshet describe`, a language model or by hand.

A line has `item_id`, and `text` or `keywords` (one text, or a list). It may have `about`, the hash of the item's text
that was described: a line about another text is stale and not used, because the item was changed since, or is another
catalogue's with the same id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from models.data.texts import clean
from schemas.errors import DataError

PLACE = Path("knowledge") / "items.jsonl"  # in a data folder, and in the home folder
MAX_WRITTEN = 480  # characters kept of what is written of an item; 20 keywords are 200
_LONGEST_LINE = 100_000  # bytes; a longer line is none of ours


@dataclass(frozen=True, slots=True)
class WrittenItems:
    """What was written of a catalogue's items.

    Args:
        texts: cleaned text by item id, of items in the catalogue.
        stale: lines about another text than the catalogue's.
        others: lines about items that the catalogue does not have.
        unreadable: lines without an id or a text.
    """

    texts: Mapping[str, str]
    stale: int = 0
    others: int = 0
    unreadable: int = 0

    def lines(self, name: str) -> list[str]:
        """Return what became of the lines, as text for the terminal."""
        left = [f"{count:,} {why}" for count, why in (
            (self.stale, "about an earlier text of the item"), (self.others, "about items not in the catalogue"),
            (self.unreadable, "unreadable")) if count]
        return [f"{name}: {len(self.texts):,} items are described" + (f"; not used: {', '.join(left)}" if left else "")]


def about(text: str) -> str:
    """Return the hash of an item's text that a description names."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_written(path: Path, items: Sequence[str], texts: Sequence[str]) -> WrittenItems | None:
    """Return what a file says of a catalogue's items, the last line of an item first; None without a file.

    Args:
        items, texts: the catalogue's ids and texts.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    of = dict(zip(items, texts, strict=True))
    found: dict[str, str] = {}
    stale = others = unreadable = 0
    for line in content.splitlines():
        if not line.strip():
            continue
        item, text, described = _line(line)
        if not item or not text:
            unreadable += 1
        elif item not in of:
            others += 1
        elif described and described != about(of[item]):
            stale += 1
        else:
            found[item] = text
    return WrittenItems(found, stale, others, unreadable)


def _line(line: bytes) -> tuple[str, str, str]:
    """Return item id, cleaned text and hash of a line; empty where it has none."""
    try:
        row: Any = orjson.loads(line) if len(line) <= _LONGEST_LINE else None
    except orjson.JSONDecodeError:
        return "", "", ""
    if not isinstance(row, dict) or type(row.get("item_id")) not in {str, int}:
        return "", "", ""
    said = row.get("text", row.get("keywords"))
    if isinstance(said, list) and all(isinstance(part, str) for part in said):
        said = ", ".join(said)
    described = row.get("about")
    return (str(row["item_id"]), clean(said, MAX_WRITTEN) if isinstance(said, str) else "",
            described if isinstance(described, str) else "")
