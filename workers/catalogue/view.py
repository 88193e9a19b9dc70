"""The items of the catalogue by row: names, availability, labels and prices. No broker, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.data.texts import item_text, item_title
from schemas.catalogue.item import CatalogueItem


@dataclass(frozen=True, slots=True)
class Entry:
    """What the catalogue says of an item.

    Args:
        version: of this entry, see `workers.catalogue.reader`; an older one changes nothing. 0 = from the fit.
        text: what is read of it: title, attributes and further text, cleaned.
        removed: by a tombstone.
    """

    item_id: str
    version: int = 0
    title: str = ""
    text: str = ""
    available: bool = True
    labels: tuple[str, ...] = ()
    price: float | None = None
    removed: bool = False

    @classmethod
    def of(cls, item: CatalogueItem, version: int) -> Entry:
        """Return the entry that a message makes."""
        text = item_text(item.title, item.attributes, item.text)
        return cls(item.item_id, version, item_title(item.title), text, item.available, tuple(item.labels),
                   item.price)

    @classmethod
    def gone(cls, item_id: str, version: int) -> Entry:
        """Return the entry that a tombstone makes."""
        return cls(item_id, version, available=False, removed=True)


class Catalogue:
    """The items in row order: those of a fitted model first, then those that came later, in order of arrival.

    A row never goes away, because histories name it: an item that was removed is not available.

    Args:
        items: n ids of the fitted model, in its order.
        texts: (n,) their texts; () = not known.
        titles: (n,) their names; () = the texts.

    Attributes:
        items: all ids, in row order.
        rows: id → row.
        entries: what is known of each row.
        available: (rows,) bool, whether the item may be in a list. Replaced, never changed in place.
        fitted: number of the model's own rows.
    """

    def __init__(self, items: Sequence[str], texts: Sequence[str] = (), titles: Sequence[str] = ()) -> None:
        texts = texts or [""] * len(items)
        self.items = list(items)
        self.rows = {item: row for row, item in enumerate(items)}
        self.entries = [Entry(item, 0, title, text)
                        for item, title, text in zip(items, titles or texts, texts, strict=True)]
        self.fitted = len(self.items)
        self.available: NDArray[np.bool_] = np.ones(len(self.items), dtype=bool)
        self._came: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self.items)

    def apply(self, entries: Iterable[Entry]) -> list[int]:
        """Take what came, in order; return the rows that are new or have another text than before, ascending.

        An item that is removed before it was ever here gets no row.
        """
        touched: set[int] = set()
        available: dict[int, bool] = {}
        for entry in entries:
            held = self._came.get(entry.item_id)
            if held is not None and entry.version <= held.version:
                continue
            self._came.pop(entry.item_id, None)  # so that the order is that of the newest entries
            self._came[entry.item_id] = entry
            row = self.rows.get(entry.item_id, -1)
            if row < 0:
                if entry.removed:
                    continue
                row = self.rows[entry.item_id] = len(self.items)
                self.items.append(entry.item_id)
                self.entries.append(entry)
                touched.add(row)
            else:
                before = self.entries[row]
                if entry.removed:  # its text still speaks in histories
                    self.entries[row] = replace(entry, title=before.title, text=before.text)
                else:
                    self.entries[row] = entry
                    if entry.text != before.text:
                        touched.add(row)
            available[row] = entry.available
        if available:
            mask = np.ones(len(self.items), dtype=bool)
            mask[: len(self.available)] = self.available
            mask[list(available)] = list(available.values())
            self.available = mask
        return sorted(touched)

    def rebased(self, items: Sequence[str], texts: Sequence[str] = (), titles: Sequence[str] = ()) -> Catalogue:
        """Return the catalogue of another fitted model with everything that came."""
        other = Catalogue(items, texts, titles)
        other.apply(self._came.values())
        return other

    def unavailable(self) -> NDArray[np.int64]:
        """Return the rows of the items that may be in no list."""
        return np.flatnonzero(~self.available)

    def later(self) -> Iterator[Entry]:
        """Yield what came since the fit, the newest of each item, in order of arrival."""
        yield from self._came.values()
