"""A data set as columns: events, and the ids and texts behind their row numbers. `models.data.loading` reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.data.account import Account
from models.data.written import WrittenItems
from schemas.errors import DataError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


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
        accounts: what became of the rows of each file.
        warnings: what is probably not meant, a line each.
        written: what a language model wrote of the items, as the folder has it; None = nothing.
        titles: cleaned catalogue title of each item, "" for items without one; [] = not known.
    """

    events: Events
    users: list[str]
    items: list[str]
    types: list[str]
    texts: list[str]
    skipped: dict[str, int]
    hash: str
    accounts: tuple[Account, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    written: WrittenItems | None = None
    titles: list[str] = field(default_factory=list)


def split(dataset: Dataset, fraction: float) -> tuple[Events, Events]:
    """Return the first `fraction` of the events by time, and the rest.

    Raises:
        DataError: one of the two parts would be empty.
    """
    cut = int(len(dataset.events) * fraction)
    if cut in {0, len(dataset.events)}:
        raise DataError(f"{len(dataset.events)} events cannot be split at {fraction}")
    return dataset.events[:cut], dataset.events[cut:]
