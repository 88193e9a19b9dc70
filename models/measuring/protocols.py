"""Evaluation protocols: which events are used for training, which are predicted.

*leave-one-out* (used in the papers): each user's last event is the test, the one before it chooses epochs, and the rest
is for training. Users with fewer than three events are used for training only. *stream time* (as in production): models
are fitted on the first share of the timeline. Its newest tenth chooses epochs and is then trained on as well. Every
later event is predicted from earlier events. Both protocols rank the whole catalogue without items the user has had
(`models.measuring.metrics`) and keep every event's rank, so two systems can be compared event by event. Events without
history are not predicted: nothing is known of their users.

*Ties* are events of one user at the same time. No recommendation could be served between them, so by default an event
is predicted from *strictly* earlier events, and tied events stand in an order that the seed shuffles. Published figures
read all rows before the event instead, *shuffled* or in the order of the *file*. They are for comparison only: tied
events ascend by item on Amazon Beauty, and a transformer learns that.

The catalogue is not filtered. Amazon Beauty as published is, by a 5-core over *all* time: of its 12,101 items, 325
have no event in the first 80% of the timeline, and they are in the file because they get five later ones. They are the
target of 6,990 of 39,701 later events, and no model of behaviour alone can name them. Figures therefore come apart for
items *known* from the training part, which make the headline, and unseen ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.data.dataset import BoolArray, Dataset, FloatArray, IntArray, split
from models.data.fold import Fold, held_out
from models.data.sequences import Sequences, tie_order
from schemas.errors import DataError

FEWEST = 3  # events of a user in leave-one-out: one each for training, validation and test
# A session starts when a user comes back after more than half an hour, the usual limit of web analytics. Times on
# Beauty are days, so there a session is a day with purchases, as for the recorded texts about users.
GAP = 30 * 60.0  # seconds
TIES = ("strict", "shuffled", "file")


@dataclass(frozen=True, slots=True)
class Split:
    """The split of a data set under one protocol.

    Args:
        protocol: name of the protocol.
        fold: training events, including the held-out rows that choose epochs; contains no test event.
        test: all events by user.
        begin: (users,) first predicted row of `test` for each user; the user's later rows are predicted too.
        extends: whether scorers are trained further on the held-out rows once the epochs are chosen.
        limit: maximum number of predicted events, the same events for every system and, in stream time, every seed;
            None = all.
        ties: one of `TIES`.
        time: (n,) seconds of the rows of `test`; None = unknown.
    """

    protocol: str
    fold: Fold
    test: Sequences
    begin: IntArray
    extends: bool
    limit: int | None = None
    ties: str = "strict"
    time: FloatArray | None = None

    def user(self, rows: IntArray) -> IntArray:
        """Return the users (m,) of rows (m,) of `test`."""
        return self.test.user(rows)

    def seen(self, rows: IntArray) -> IntArray:
        """Return how many training events the item of each row (m,) has, (m,); 0 = an unseen item."""
        return np.bincount(self.fold.sequences.item, minlength=self.fold.n_items)[self.test.item[rows]]

    def starts(self, rows: IntArray) -> BoolArray:
        """Return whether each predicted row (m,) starts a session, (m,) bool: more than `GAP` after what is known.

        With strict ties, all events at the first moment of a session start it: all are predicted from before it.
        """
        if self.time is None:
            return np.zeros(len(rows), dtype=bool)
        newest = self.test.known(rows) - 1
        return np.asarray(self.time[rows] - self.time[newest] > GAP)

    def rows(self) -> IntArray:
        """Return the predicted rows of `test`, ascending (m,): those from `begin` on whose users have a history."""
        first = np.repeat(self.begin, self.test.lengths())
        rows = np.flatnonzero((np.arange(len(self.test.item)) >= first) & self.test.with_history())
        if self.limit is None or len(rows) <= self.limit:
            return rows
        # In the order of events, which no seed shuffles.
        rows = rows[np.argsort(self.test.index[rows])]
        return np.sort(np.random.default_rng(len(rows)).permutation(rows)[: self.limit])


def leave_one_out(dataset: Dataset, ties: str = "strict", seed: int = 0) -> Split:
    """Hold out each user's last event for the test and the one before for validation.

    Args:
        ties: one of `TIES`.
        seed: of the order of tied events; it decides which of them is the last.

    Raises:
        DataError: no user has three events.
    """
    test = Sequences.of(
        dataset.events, len(dataset.users), tie_order(len(dataset.events), _shuffled(ties, seed)), ties == "strict")
    lengths = test.lengths()
    tested = lengths >= FEWEST
    if not tested.any():
        raise DataError("leave-one-out needs users with at least three events, and there are none")
    last = test.offsets[1:] - 1
    keep = np.ones(len(test.item), dtype=bool)
    keep[last[tested]] = False
    known = test.kept(keep)
    fold = Fold(known, known.offsets[1:] - tested, len(dataset.items))
    return Split("leave_one_out", fold, test, test.offsets[1:] - tested, extends=False, ties=ties,
                 time=dataset.events.time[test.index])


def stream_time(dataset: Dataset, fraction: float = 0.8, ties: str = "strict", seed: int = 0) -> Split:
    """Fit on the first `fraction` of the timeline and predict all later events.

    Args:
        ties: one of `TIES`.
        seed: of the order of tied events.

    Raises:
        DataError: one of the two parts would be empty.
    """
    past, _ = split(dataset, fraction)
    users, order, strict = len(dataset.users), _shuffled(ties, seed), ties == "strict"
    fold = Fold.of(past, users, len(dataset.items), seed=order, strict=strict)
    # The same order as in the fold: both cuts count.
    key = tie_order(len(dataset.events), order, held_out(len(past)), len(past))
    test = Sequences.of(dataset.events, users, key, strict)
    begin = test.offsets[:-1] + np.bincount(past.user, minlength=users)
    return Split("stream_time", fold, test, begin, extends=True, ties=ties, time=dataset.events.time[test.index])


def _shuffled(ties: str, seed: int) -> int | None:
    if ties not in TIES:
        raise DataError(f"unknown order of ties {ties!r}; there are {', '.join(TIES)}")
    return None if ties == "file" else seed


PROTOCOLS = ("leave_one_out", "stream_time")


def protocol(
    name: str, dataset: Dataset, fraction: float = 0.8, limit: int | None = None, ties: str = "strict", seed: int = 0,
) -> Split:
    """Return the split of a protocol by name.

    Args:
        fraction: share of the timeline to fit on, in stream time.
        limit: maximum number of predicted events.
        ties: one of `TIES`.
        seed: of the order of tied events.

    Raises:
        DataError: the protocol does not exist, or the data set is too small for it.
    """
    if name not in PROTOCOLS:
        raise DataError(f"unknown protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    found = (leave_one_out(dataset, ties, seed) if name == "leave_one_out"
             else stream_time(dataset, fraction, ties, seed))
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

    A moment is a row r: knowledge for moment r is made from the user's rows strictly before r. At the user's first row
    there is no knowledge.
    """
    user, latest = sequences.user(rows), sequences.known(rows)
    if age.behind is None:
        return sequences.known(np.minimum(begin[user], latest))
    return sequences.known(np.maximum(sequences.offsets[user], latest - age.behind))


