"""The outcome of a run under a protocol: every event's rank, and summary figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.data.dataset import BoolArray, FloatArray, IntArray
from models.measuring.harm import harmed
from models.measuring.metrics import hits_lost, ndcg, recall
from models.measuring.protocols import Split

CUTS = (5, 10)
SEEN = (0, 1, 5, 20)  # lower ends of the buckets of the target item's training events
LENGTHS = (0, 1, 5, 20, 50)  # lower ends of the buckets of the user's earlier events


@dataclass(frozen=True, slots=True)
class Ranks:
    """One scorer's ranks and log-probabilities on m events.

    Args:
        rows: (m,) rows of the test sequences.
        rank: (m,) rank of the target among items the user has not had, 0 = first; the catalogue's size = missed.
        logp: (m,) log-probability of the target over the whole catalogue, nats.
    """

    rows: IntArray
    rank: IntArray
    logp: FloatArray

    def at(self, inside: BoolArray) -> Ranks:
        """Return the ranks of some of the events (m,) bool."""
        return Ranks(self.rows[inside], self.rank[inside], self.logp[inside])


@dataclass(frozen=True, slots=True)
class Outcome:
    """A system's ranks, and those of its reference on the same rows if it has one."""

    ranks: Ranks
    reference: Ranks | None = None

    def at(self, inside: BoolArray) -> Outcome:
        """Return the outcome on some of the events (m,) bool."""
        return Outcome(self.ranks.at(inside), None if self.reference is None else self.reference.at(inside))

    def harmed(self, task: Split) -> tuple[float, float] | None:
        """Return the shares of users and of events with s_ref − s_θ > δ, in nats; None without a reference.

        Args:
            task: the split whose events were ranked. A user's s is the mean over their events (one in leave-one-out).
        """
        if self.reference is None:
            return None
        if not len(self.ranks.rows):
            return 0.0, 0.0
        loss = self.reference.logp - self.ranks.logp
        users = mean_by_user(task.user(self.ranks.rows), loss)
        return float(harmed(users).mean()), float(harmed(loss).mean())


def summary(outcome: Outcome, task: Split) -> dict[str, float | None]:
    """Return the headline: the figures of events on items known from the training part, see `figures`."""
    return figures(outcome.at(task.seen(outcome.ranks.rows) > 0), task)


def figures(outcome: Outcome, task: Split) -> dict[str, float | None]:
    """Return Recall and NDCG at 5 and 10, log-likelihood, the harmed share of users and events, and hits lost at 10."""
    users, events = outcome.harmed(task) or (None, None)
    lost = None if outcome.reference is None else hits_lost(outcome.ranks.rank, outcome.reference.rank)
    return _figures(outcome.ranks, np.ones(len(outcome.ranks.rows), dtype=bool)) | {
        "harmed_fraction": users, "harmed_events": events, "hits_lost": lost}


def breakdown(outcome: Outcome, task: Split) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return figures of parts of the events.

    "items": all, those known from the training part and those unseen in it; "sessions": at their start and within, on
    known items; "item_seen": by the number of training events of the item; "user_events": by the number of the user's
    earlier events.
    """
    rows = outcome.ranks.rows
    seen, start = task.seen(rows), task.starts(rows)
    length = task.test.known(rows) - task.test.offsets[task.user(rows)]
    parts = {"items": {"all": seen >= 0, "known": seen > 0, "unseen": seen == 0},
             "sessions": {"start": start & (seen > 0), "within": ~start & (seen > 0)}}
    out = {name: {part: figures(outcome.at(inside), task) for part, inside in each.items()}
           for name, each in parts.items()}
    return out | {
        "item_seen": _buckets(outcome.ranks, seen, SEEN), "user_events": _buckets(outcome.ranks, length, LENGTHS)}


def mean_by_user(user: IntArray, values: FloatArray) -> FloatArray:
    """Return the mean value of each user (u,), in order of user number, from values (m,) of users (m,)."""
    _, place = np.unique(user, return_inverse=True)
    return np.bincount(place, values) / np.bincount(place)


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
    found: dict[str, float | None] = {
        f"{name}_at_{k}": mean(measure(ranks.rank, k)) for k in CUTS for name, measure in measures}
    return found | {"logp": mean(ranks.logp), "n": float(inside.sum())}
