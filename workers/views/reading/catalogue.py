"""Items of the model version in use: titles and texts in the tables, neighbours from the version's files.

Ids and texts go into the tables and not into memory: a million items would be 300 MB of Python texts. The closed form's
neighbours are read row by row from the mapped file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from cachetools import LRUCache
from safetensors import SafetensorError, safe_open

from schemas.artifacts import Artifact, Registry
from schemas.calibration import Calibration
from schemas.deployments import Deployments, base_of
from schemas.errors import ArtifactError, FreshetError
from workers.home.titles import TITLES, shortened
from workers.views.facts import NamedItem
from workers.views.reading import tables
from workers.views.reading.tables import (
    KeptEntry,
    KeptItemRow,
    Tables,
    entry_in,
    item_in,
    item_row,
    key_of,
    pack_number,
)

log = logging.getLogger(__name__)
# As in workers.store.item_files, whose import brings the store's client.
_VECTORS, _WRITTEN, _TEXTS = "item_vectors.safetensors", "item_written.json", "texts.json"
_CLOSED = "behaviour.safetensors", "affinity.safetensors"  # neighbours by behaviour; the second holds texts, too
_PART = 10_000  # rows written at a time
NEIGHBOURS = 12


class ShownItems:
    """Items as the version in use has them. `follow` is for one thread, everything else for any.

    Args:
        home: where models are.
    """

    def __init__(self, home: Path, held: Tables) -> None:
        self._deployments = Deployments(home)
        self._registry = Registry(home)
        self._tables = held
        self._signature: tuple[object, ...] | None = None
        self._titles = LRUCache[str, str](20_000)
        self._titles_lock = threading.Lock()
        self._artifact: Artifact | None = None
        self.model_version = ""
        self.calibration: Calibration | None = None
        self.problem = ""

    @property
    def dim(self) -> int:
        """Width of users' vectors in the store; 0 = not known."""
        return 0 if self._artifact is None else int(self._artifact.card.fit.get("dim", 0))

    @property
    def encoding(self) -> int:
        """Width of the encodings of items' texts; 0 = the version has none."""
        if self._artifact is None or _VECTORS not in self._artifact.card.files:
            return 0
        try:
            with safe_open(self._artifact.path(_VECTORS), "numpy") as file:
                return int(file.get_slice("items").get_shape()[1])
        except (SafetensorError, OSError):
            return 0

    def follow(self) -> None:
        """Look which version is in use, and take its items. A version that cannot be read changes nothing."""
        signature = self._deployments.signature()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            in_use = self._deployments.in_use().model_version
            # Without the hashes of its files, which take half a second a gigabyte: the roles check them.
            card = self._registry.card(base_of(in_use))
            artifact = Artifact(self._registry.folder / card.model_version, card)
            self.calibration = artifact.calibration()
            if self._artifact is None or self._artifact.model_version != card.model_version:
                self._take(artifact)
            self._artifact, self.model_version, self.problem = artifact, in_use, ""
        except (FreshetError, OSError, ValueError) as error:
            self.problem = str(error)
            log.warning("console: the model version in use cannot be read: %s", error)

    def _take(self, artifact: Artifact) -> None:
        items = artifact.items()
        texts, titles, written = (_texts(artifact, name, len(items)) for name in (_TEXTS, TITLES, _WRITTEN))
        self._tables.clear(tables.ITEM)
        self._tables.clear(tables.ROW)
        for begin in range(0, len(items), _PART):
            rows: list[tuple[bytes, bytes, bytes | None]] = []
            for row in range(begin, min(begin + _PART, len(items))):
                text = texts[row] if texts else ""
                title = titles[row] if titles else shortened(text)
                rows.append((tables.ITEM, key_of(items[row]),
                             item_row(row, title, text, written[row] if written else "")))
                rows.append((tables.ROW, pack_number(row), key_of(items[row])))
            self._tables.write(rows)
        self.forget_titles()

    def title(self, item: str) -> str:
        """Return an item's title, "" = it is not known. What the topic `catalogue` says goes before the version's."""
        with self._titles_lock:
            held = self._titles.get(item)
        if held is None:
            entry, found = self.entry(item), self.item(item)
            held = (entry.title if entry else "") or (found.title if found else "")
            with self._titles_lock:
                self._titles[item] = held
        return held

    def forget_titles(self) -> None:
        """Look titles up again: the catalogue has changed."""
        with self._titles_lock:
            self._titles.clear()

    def entry(self, item: str) -> KeptEntry | None:
        """Return an item as the topic `catalogue` has it, None if it has none of this id."""
        return entry_in(self._tables.read(tables.ENTRY, key_of(item)))

    def search(self, text: str, at_most: int, seconds: float) -> Iterator[NamedItem]:
        """Yield the item with this id, then those whose title holds all words of `text`, as far as the time allows."""
        if self.item(text) is not None or self.entry(text) is not None:
            yield NamedItem(text, self.title(text))
        words, found, until = text.casefold().split(), 0, time.monotonic() + seconds
        for kind in (tables.ENTRY, tables.ITEM):
            for key, row in self._tables.rows(kind):
                if found >= at_most or not words or time.monotonic() > until:
                    return
                one = entry_in(row) if kind == tables.ENTRY else item_in(row)
                title = one.title.casefold() if one else ""
                if not all(word in title for word in words):
                    continue
                item = key.decode("utf-8", "surrogatepass")
                if item != text and (kind == tables.ENTRY or self.entry(item) is None):
                    found += 1
                    yield NamedItem(item, self.title(item))

    def item(self, item: str) -> KeptItemRow | None:
        """Return an item of the version, None if it has none of this id."""
        return item_in(self._tables.read(tables.ITEM, key_of(item)))

    def named(self, row: int, score: float) -> NamedItem | None:
        """Return the item of a row."""
        key = self._tables.read(tables.ROW, pack_number(row))
        if key is None:
            return None
        item = key.decode("utf-8", "surrogatepass")
        return NamedItem(item, self.title(item), score)

    def by_behaviour(self, row: int) -> tuple[NamedItem, ...]:
        """Return the items that people take with the one of this row, by the weights of the closed form."""
        if self._artifact is None:
            return ()
        for name in _CLOSED:
            if name in self._artifact.card.files:
                try:
                    if found := tuple(self._closed_form(self._artifact.path(name), row)):
                        return found
                except (SafetensorError, OSError, ValueError, IndexError) as error:
                    log.warning("console: %s of model %s cannot be read: %s", name, self.model_version, error)
        return ()

    def _closed_form(self, path: Path, row: int) -> Iterator[NamedItem]:
        with safe_open(path, "numpy") as file:
            names = set(file.keys())
            if not {"neighbours", "weights"} <= names:
                return
            items, weights = (file.get_slice(name)[row : row + 1][0] for name in ("neighbours", "weights"))
        order = sorted(zip(weights.tolist(), items.tolist(), strict=True), reverse=True)
        for weight, other in order[: NEIGHBOURS]:
            if weight > 0 and other != row and (found := self.named(int(other), float(weight))) is not None:
                yield found


def _texts(artifact: Artifact, name: str, n: int) -> list[str]:
    """Return a list of texts among the version's files, [] if it has none.

    Raises:
        ArtifactError: the file is no list of a text per item.
    """
    if name not in artifact.card.files:
        return []
    found: Any = orjson.loads(artifact.path(name).read_bytes())
    if not isinstance(found, list) or len(found) != n or not all(isinstance(text, str) for text in found):
        raise ArtifactError(f"model {artifact.model_version}: {name} is not a text per item")
    return found
