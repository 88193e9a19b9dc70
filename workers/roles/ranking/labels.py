"""The labels of items as masks over item rows. An item without labels of its own has its attributes as labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workers.catalogue.view import Catalogue, Entry

MOST_ATTRIBUTES = 20  # of an item that become labels; more are no labels but a text
LONGEST = 100  # characters


def labels_of(entry: Entry) -> tuple[str, ...]:
    """Return an item's labels: those that the catalogue gives it, else the attributes after the title in its text."""
    if entry.labels or not entry.text.startswith(entry.title) or entry.text == entry.title:
        return entry.labels
    attributes = entry.text[len(entry.title):].removeprefix(". ").split(". ", 1)[0]
    found = [part.strip() for part in attributes.split(", ")][:MOST_ATTRIBUTES]
    return tuple(dict.fromkeys(part for part in found if 0 < len(part) <= LONGEST))


class Labels:
    """Which rows have which label. `follow` brings it up to date."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._labels: list[tuple[str, ...]] = []
        self._rows: dict[str, set[int]] = {}
        self._masks: dict[tuple[str, int], Tensor] = {}
        self._state: tuple[Catalogue | None, object] = (None, None)

    def follow(self, catalogue: Catalogue) -> bool:
        """Take what changed in a catalogue, or another one; return whether anything did. Costs nothing if not."""
        state = (catalogue, catalogue.available)  # replaced with every change
        if self._state[0] is state[0] and self._state[1] is state[1]:
            return False
        self._state = state
        if len(catalogue.entries) < len(self._entries):
            self._entries, self._labels, self._rows, self._masks = [], [], {}, {}
        for row, entry in enumerate(catalogue.entries):
            if row < len(self._entries):
                if self._entries[row] is entry:
                    continue
                for label in self._labels[row]:
                    self._rows[label].discard(row)
                self._entries[row], self._labels[row] = entry, labels_of(entry)
            else:
                self._entries.append(entry)
                self._labels.append(labels_of(entry))
            for label in self._labels[row]:
                self._rows.setdefault(label, set()).add(row)
            self._masks.clear()
        return True

    def has(self, label: str) -> bool:
        """Return whether an item has the label."""
        return bool(self._rows.get(label))

    def has_value_of(self, attribute: str) -> bool:
        """Return whether an item has a label that begins with the attribute and a colon."""
        return any(rows and label.partition(":")[0] == attribute for label, rows in self._rows.items())

    def of(self, row: int) -> tuple[str, ...]:
        """Return the labels of a row."""
        return self._labels[row]

    def row(self, item: str) -> int:
        """Return the row of an item id, −1 for an unknown one."""
        return -1 if self._state[0] is None else self._state[0].rows.get(item, -1)

    def id_of(self, row: int) -> str:
        """Return the item id of a row."""
        return self._entries[row].item_id

    def mask(self, labels: Sequence[str], n: int) -> Tensor:
        """Return (n,) bool: the rows with one of the labels."""
        out = torch.zeros(n, dtype=torch.bool)
        for label in labels:
            out |= self._one(label, n)
        return out

    def _one(self, label: str, n: int) -> Tensor:
        found = self._masks.get((label, n))
        if found is None:
            rows = [row for row in self._rows.get(label, ()) if row < n]
            found = torch.zeros(n, dtype=torch.bool)
            found[torch.from_numpy(np.array(rows, dtype=np.int64))] = True
            if len(self._masks) < 1000:  # users may ask for any label; 12,000 items take 12 kB each
                self._masks[label, n] = found
        return found
