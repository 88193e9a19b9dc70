"""Titles of items, for people: among a model version's files, so every command on this home has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from schemas.artifacts import Registry
from schemas.errors import ArtifactError
from schemas.reading.fields import NAMES, plain_name

TITLES = "titles.json"
# A version of an earlier release has texts alone: a title, then attributes. Cut to about a title's length: 99%
# of MovieLens' titles are shorter.
_FROM_TEXT = 50
_DEEP = 16  # Freshet's messages and trackers' envelopes are less deep; others' may be as deep as the recursion limit
_IDS = ("history", "seen", "reference")  # fields of messages that are lists of item ids


class Titles:
    """Title by item id; ids without a title are their own name."""

    def __init__(self, titles: Mapping[str, str]) -> None:
        self._titles = titles

    def joined(self, newer: Mapping[str, str]) -> Titles:
        """Return these titles with others, which go first."""
        return Titles({**self._titles, **newer})

    def title(self, item: str) -> str:
        """Return the title, or the id if there is none."""
        return self._titles.get(item) or item

    def name(self, item: str) -> str:
        """Return the title with the id, as `Star Wars (1977) [50]`, or the id alone."""
        title = self._titles.get(item)
        return f"{title} [{item}]" if title else item

    def names(self, items: Iterable[str]) -> str:
        """Return the names of items in one line."""
        return ", ".join(map(self.name, items))

    def within(self, value: bytes) -> str:
        """Return the names of the items with a title that an event or message as JSON names; "" for none."""
        try:
            record = orjson.loads(value)
        except orjson.JSONDecodeError:
            return ""
        return self.names(item for item in dict.fromkeys(_ids(record)) if self._titles.get(item))

    def beside(self, record: Any, depth: int = 0) -> Any:
        """Return a decoded message with titles beside the ids: `title`, and `history_titles`, … for lists of ids.

        Ids stay as they are; an item without a title has "".
        """
        if isinstance(record, list) and depth < _DEEP:
            return [self.beside(part, depth + 1) for part in record]
        if not isinstance(record, dict) or depth >= _DEEP:
            return record
        out: dict[str, Any] = {}
        for key, value in record.items():
            out[key] = self.beside(value, depth + 1)
            if key == "item_id" and isinstance(value, str):
                out["title"] = self._titles.get(value, "")
            elif key in _IDS and isinstance(value, list):
                out[f"{key}_titles"] = [self._titles.get(item, "") if isinstance(item, str) else "" for item in value]
        return out


def write_titles(folder: Path, titles: Sequence[str]) -> None:
    """Write the titles of a version that is being published, in the order of its items; nothing if there are none."""
    if any(titles):
        (folder / TITLES).write_bytes(orjson.dumps(list(titles)))


def read_titles(home: Path) -> Titles:
    """Return the titles of the model in use. Empty where there is no model, or its files cannot be read: ids will do.
    """
    registry = Registry(home)
    try:
        folder = registry.folder / registry.current()
        items = orjson.loads((folder / "items.json").read_bytes())
        titled = (folder / TITLES).is_file()
        texts = orjson.loads((folder / (TITLES if titled else "texts.json")).read_bytes())
        return Titles({item: text if titled else shortened(text)
                       for item, text in zip(items, texts, strict=True)})
    except (ArtifactError, OSError, ValueError, TypeError):
        return Titles({})


def _ids(record: Any, depth: int = 0) -> Iterator[str]:
    """Yield the item ids in a decoded record, by the names that fields of items have."""
    if depth >= _DEEP:
        return
    if isinstance(record, list):
        for part in record:
            yield from _ids(part, depth + 1)
    elif isinstance(record, dict):
        for key, value in record.items():
            if isinstance(value, str | int) and plain_name(key) in NAMES["item_id"]:
                yield str(value)
            elif key in _IDS and isinstance(value, list):
                yield from (item for item in value if isinstance(item, str))
            else:
                yield from _ids(value, depth + 1)


def shortened(text: str) -> str:
    """Return what stands for a title: the start of a text."""
    return text if len(text) <= _FROM_TEXT else text[:_FROM_TEXT].rsplit(" ", 1)[0] + " …"
