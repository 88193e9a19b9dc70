"""How systems are compared: what is trained on, what is predicted, and the figures of it.

*leave-one-out* (the papers'): each user's last event is the test, the one before chooses epochs, the rest is trained
on; users with fewer than three events are only trained on. *stream time* (what counts in production): fitted on the
first share of the timeline, of which the newest tenth chooses epochs and is then trained on as well; every later event
is predicted from what was known before it. Both rank the whole catalogue without what the user has had
(`models.evaluation`), and keep the rank of every event, so that two systems can be compared event by event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from models.constraint import harmed
from models.dataset import Dataset, FloatArray, IntArray, split
from models.evaluation import ndcg, recall
from models.sequences import Sequences
from models.training import Fold
from schemas.errors import DataError

CUTS = (5, 10)
FEWEST = 3  # events of a user in leave-one-out: one each for training, validation and test
SEEN = (0, 1, 5, 20)  # lower ends of the buckets of how often an item was seen
LENGTHS = (0, 1, 5, 20, 50)  # the same of a user's events


@dataclass(frozen=True, slots=True)
class Split:
    """A data set as one protocol sees it.

    Args:
        protocol: its name.
        fold: what may be trained on, with the held-out rows that choose epochs. No test event is in it.
        test: all events by user.
        begin: (users,) first row of `test` to predict of each user; the user's later rows are predicted too.
        extends: whether scorers go on over the held-out rows once the epochs are known.
        limit: predicted events at most, drawn the same way for every system and seed; None = all.
    """

    protocol: str
    fold: Fold
    test: Sequences
    begin: IntArray
    extends: bool
    limit: int | None = None

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
    """Fit on the first `fraction` of the timeline, predict all that comes later.

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
        fraction: of the timeline that is fitted on, in stream time.
        limit: predicted events at most.

    Raises:
        DataError: there is no such protocol, or the data is too small for it.
    """
    if name not in PROTOCOLS:
        raise DataError(f"unknown protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    found = leave_one_out(dataset) if name == "leave_one_out" else stream_time(dataset, fraction)
    return replace(found, limit=limit)


@dataclass(frozen=True, slots=True)
class Age:
    """How old a user's knowledge is when an event is predicted.

    Args:
        behind: events of the user it does not know yet, the predicted one aside; None = frozen at the split.
    """

    behind: int | None = 0

    @property
    def name(self) -> str:
        """Return `fresh`, `behind_k` or `frozen`."""
        return "frozen" if self.behind is None else f"behind_{self.behind}" if self.behind else "fresh"


FRESH, FROZEN = Age(0), Age(None)
AGES = (FRESH, Age(1), Age(4), Age(16), FROZEN)


def moments(sequences: Sequences, begin: IntArray, rows: IntArray, age: Age) -> IntArray:
    """Return, for each predicted row (m,), the row before which its user's knowledge was generated (m,).

    Knowledge of moment r has read the user's rows before r. Where a moment is the user's first row there is none.
    """
    user = np.searchsorted(sequences.offsets, rows, "right") - 1
    if age.behind is None:
        return np.minimum(begin[user], rows)
    return np.maximum(sequences.offsets[user], rows - age.behind)


@dataclass(frozen=True, slots=True)
class Ranks:
    """What one scorer made of m events.

    Args:
        rows: (m,) rows of the test sequences.
        rank: (m,) of the item taken, 0 = first, among items the user has not had; the catalogue's size = missed.
        logp: (m,) its log-probability over the whole catalogue, nats.
    """

    rows: IntArray
    rank: IntArray
    logp: FloatArray


@dataclass(frozen=True, slots=True)
class Outcome:
    """A system's ranks, with its own reference's where it has one (rows are the same)."""

    ranks: Ranks
    reference: Ranks | None = None

    def harmed(self, task: Split) -> tuple[float, float] | None:
        """Return the shares of users and of events with s_ref − s_θ > δ, None without a reference.

        Args:
            task: whose events were ranked. A user's s is the mean over his events; in leave-one-out he has one.
        """
        if self.reference is None:
            return None
        if not len(self.ranks.rows):
            return 0.0, 0.0
        loss = self.reference.logp - self.ranks.logp
        users = np.array([part.mean() for part in by_user(task, self.ranks.rows, loss)])
        return float(harmed(users).mean()), float(harmed(loss).mean())


def summary(outcome: Outcome, task: Split) -> dict[str, float | None]:
    """Return Recall and NDCG at 5 and 10, log-likelihood, and the harmed share of users and of events."""
    users, events = outcome.harmed(task) or (None, None)
    return _figures(outcome.ranks, np.ones(len(outcome.ranks.rows), dtype=bool)) | {
        "harmed_fraction": users, "harmed_events": events}


def breakdown(outcome: Outcome, task: Split) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return figures by how often the target item had been seen in training, and by the user's events so far."""
    rows = outcome.ranks.rows
    seen = np.bincount(task.fold.sequences.item, minlength=task.fold.n_items)[task.test.item[rows]]
    length = rows - task.test.offsets[np.searchsorted(task.test.offsets, rows, "right") - 1]
    return {"item_seen": _buckets(outcome.ranks, seen, SEEN), "user_events": _buckets(outcome.ranks, length, LENGTHS)}


def by_user(task: Split, rows: IntArray, values: FloatArray) -> list[FloatArray]:
    """Return values (m,) of rows (m,) grouped by user, for `models.evaluation.paired_interval`."""
    user = np.searchsorted(task.test.offsets, rows, "right") - 1
    return [part for part in np.split(values, np.flatnonzero(np.diff(user)) + 1) if len(part)]


def _buckets(ranks: Ranks, values: IntArray, lows: tuple[int, ...]) -> dict[str, dict[str, float | None]]:
    out = {}
    for at, low in enumerate(lows):
        high = lows[at + 1] if at + 1 < len(lows) else None
        name = f"{low}+" if high is None else f"{low}" if high == low + 1 else f"{low}-{high - 1}"
        out[name] = _figures(ranks, (values >= low) & (values < high if high is not None else True))
    return out


def _figures(ranks: Ranks, inside: np.ndarray) -> dict[str, float | None]:
    def mean(values: FloatArray) -> float:
        return float(values[inside].mean()) if inside.any() else 0.0

    measures: tuple[tuple[str, Callable[[IntArray, int], FloatArray]], ...] = (("recall", recall), ("ndcg", ndcg))
    figures: dict[str, float | None] = {
        f"{name}_at_{k}": mean(measure(ranks.rank, k)) for k in CUTS for name, measure in measures}
    return figures | {"logp": mean(ranks.logp), "n": float(inside.sum())}
