"""Evaluation protocols: which events are used for training, which are predicted.

*leave-one-out* (used in the papers): each user's last event is the test, the one before it chooses epochs, and the rest
is for training. Users with fewer than three events are used for training only. *stream time* (as in production): models
are fitted on the first share of the timeline. Its newest tenth chooses epochs and is then trained on as well. Every
later event is predicted from earlier events. Both protocols rank the whole catalogue without items the user has had
(`models.measuring.metrics`) and keep every event's rank, so two systems can be compared event by event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.data.dataset import Dataset, IntArray, split
from models.data.fold import Fold
from models.data.sequences import Sequences
from schemas.errors import DataError

FEWEST = 3  # events of a user in leave-one-out: one each for training, validation and test


@dataclass(frozen=True, slots=True)
class Split:
    """The split of a data set under one protocol.

    Args:
        protocol: name of the protocol.
        fold: training events, including the held-out rows that choose epochs; contains no test event.
        test: all events by user.
        begin: (users,) first predicted row of `test` for each user; the user's later rows are predicted too.
        extends: whether scorers are trained further on the held-out rows once the epochs are chosen.
        limit: maximum number of predicted events, sampled in the same way for every system and seed; None = all.
    """

    protocol: str
    fold: Fold
    test: Sequences
    begin: IntArray
    extends: bool
    limit: int | None = None

    def user(self, rows: IntArray) -> IntArray:
        """Return the users (m,) of rows (m,) of `test`."""
        return np.searchsorted(self.test.offsets, rows, "right") - 1

    def rows(self) -> IntArray:
        """Return the predicted rows of `test`, ascending (m,)."""
        first = np.repeat(self.begin, self.test.lengths())
        rows = np.flatnonzero(np.arange(len(self.test.item)) >= first)
        if self.limit is None or len(rows) <= self.limit:
            return rows
        return np.sort(np.random.default_rng(len(rows)).permutation(rows)[: self.limit])


def leave_one_out(dataset: Dataset) -> Split:
    """Hold out each user's last event for the test and the one before for validation.

    Raises:
        DataError: no user has three events.
    """
    test = Sequences.of(dataset.events, len(dataset.users))
    lengths = test.lengths()
    tested = lengths >= FEWEST
    if not tested.any():
        raise DataError("leave-one-out needs users with at least three events, and there are none")
    last = test.offsets[1:] - 1
    keep = np.ones(len(test.item), dtype=bool)
    keep[last[tested]] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - tested)])
    known = Sequences(test.item[keep], test.index[keep], offsets)
    fold = Fold(known, offsets[1:] - tested, len(dataset.items))
    return Split("leave_one_out", fold, test, test.offsets[1:] - tested, extends=False)


def stream_time(dataset: Dataset, fraction: float = 0.8) -> Split:
    """Fit on the first `fraction` of the timeline and predict all later events.

    Raises:
        DataError: one of the two parts would be empty.
    """
    past, _ = split(dataset, fraction)
    users = len(dataset.users)
    test = Sequences.of(dataset.events, users)
    begin = test.offsets[:-1] + np.bincount(past.user, minlength=users)
    return Split("stream_time", Fold.of(past, users, len(dataset.items)), test, begin, extends=True)


PROTOCOLS = ("leave_one_out", "stream_time")


def protocol(name: str, dataset: Dataset, fraction: float = 0.8, limit: int | None = None) -> Split:
    """Return the split of a protocol by name.

    Args:
        fraction: share of the timeline to fit on, in stream time.
        limit: maximum number of predicted events.

    Raises:
        DataError: the protocol does not exist, or the data set is too small for it.
    """
    if name not in PROTOCOLS:
        raise DataError(f"unknown protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    found = leave_one_out(dataset) if name == "leave_one_out" else stream_time(dataset, fraction)
    return replace(found, limit=limit)


@dataclass(frozen=True, slots=True)
class Age:
    """The age of a user's knowledge when an event is predicted.

    Args:
        behind: number of the user's earlier events that the knowledge does not include; None = frozen at the split.
    """

    behind: int | None = 0

    @property
    def name(self) -> str:
        """Return `fresh`, `behind_k` or `frozen`."""
        return "frozen" if self.behind is None else f"behind_{self.behind}" if self.behind else "fresh"


FRESH, FROZEN = Age(0), Age(None)
AGES = (FRESH, Age(1), Age(4), Age(16), FROZEN)


def moments(sequences: Sequences, begin: IntArray, rows: IntArray, age: Age) -> IntArray:
    """Return for each predicted row (m,) the moment (m,) at which the user's knowledge was generated.

    A moment is a row r: knowledge for moment r is made from the user's rows before r. At the user's first row there is
    no knowledge.
    """
    user = np.searchsorted(sequences.offsets, rows, "right") - 1
    if age.behind is None:
        return np.minimum(begin[user], rows)
    return np.maximum(sequences.offsets[user], rows - age.behind)


