"""Prequential quality: every event is predicted from the user's last recommendation before it.

Pure. An event's Recall@10 is 1 if its item is among the first ten, else 0. Its NDCG@10 is 1/log2(rank + 1) with rank
from 1 if the item is among the first ten, else 0. Every event has one relevant item, so the ideal DCG is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.measuring.intervals import paired_interval

TOP = 10
BEHIND = ((0, 0), (1, 3), (4, 15), (16, None))  # events of the user that the recommendation did not include yet
AGES = ((0, 5), (6, 20), (21, 50), (51, None))  # events of the user since the knowledge was requested


@dataclass(frozen=True, slots=True)
class Offer:
    """The newest recommendation of a user.

    Args:
        served: recommended item ids, best first.
        reference: item ids ranked by behaviour alone.
        fused: whether knowledge was used.
        count: number of the user's events that the recommendation includes.
        knowledge_count: number of the user's events that its knowledge includes; None without knowledge.
    """

    served: Sequence[str]
    reference: Sequence[str]
    fused: bool
    count: int
    knowledge_count: int | None


def ndcg(items: Sequence[str], item: str) -> float:
    """Return NDCG@10 of a list whose only relevant item is `item`."""
    try:
        return 1.0 / math.log2(list(items[:TOP]).index(item) + 2)
    except ValueError:
        return 0.0


@dataclass
class Prequential:
    """Running quality over the events of a stream. Events of users without a recommendation yet are only counted.

    Columns are aligned, with one entry per predicted event.
    """

    users: list[str] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    fused: list[bool] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    age: list[int] = field(default_factory=list)  # −1 = no knowledge
    at: list[float] = field(default_factory=list)
    unpredicted: int = 0
    _sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))

    def judge(self, user: str, item: str, count: int, offer: Offer | None, now: float) -> None:
        """Score `offer` against `item`, the item of the user's event number `count`."""
        if offer is None:
            self.unpredicted += 1
            return
        served, reference = ndcg(offer.served, item), ndcg(offer.reference, item)
        self.users.append(user)
        self.served.append(served)
        self.reference.append(reference)
        self.fused.append(offer.fused)
        self.behind.append(max(0, count - 1 - offer.count))
        self.age.append(-1 if offer.knowledge_count is None else max(0, count - 1 - offer.knowledge_count))
        self.at.append(now)
        self._sums += (served > 0, served, reference > 0, reference)

    @property
    def n(self) -> int:
        """Number of predicted events."""
        return len(self.users)

    def running(self) -> dict[str, dict[str, float]]:
        """Return recall and NDCG of both lists over all predicted events so far, in constant time."""
        recall, gain, reference_recall, reference_gain = (self._sums / max(1, self.n)).tolist()
        return {
            "reference": {"recall_at_10": reference_recall, "ndcg_at_10": reference_gain},
            "fused": {"recall_at_10": recall, "ndcg_at_10": gain},
        }

    def summary(self, seed: int = 0) -> dict[str, Any]:
        """Return the report's `quality`: both lists, n, the gain in NDCG@10 with its 95% interval, groups by staleness.
        """
        gain, low, high = paired_interval(self.users, np.array(self.served) - np.array(self.reference), seed=seed)
        return self.running() | {
            "n": self.n,
            "unpredicted": self.unpredicted,
            "ndcg_gain": gain,
            "ndcg_gain_interval": [low, high],
            "with_knowledge": self._part([index for index, fused in enumerate(self.fused) if fused]),
            "by_staleness": self._buckets(self.behind, BEHIND),
            "by_knowledge_age": {
                "none": self._part([index for index, age in enumerate(self.age) if age < 0]),
            } | self._buckets(self.age, AGES),
        }

    def _buckets(self, values: list[int], bounds: Sequence[tuple[int, int | None]]) -> dict[str, Any]:
        out = {}
        for low, high in bounds:
            name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
            out[name] = self._part([
                index for index, value in enumerate(values) if low <= value and (high is None or value <= high)])
        return out

    def _part(self, rows: list[int]) -> dict[str, float]:
        served, reference = np.array(self.served)[rows], np.array(self.reference)[rows]
        n = len(rows)
        return {
            "n": n,
            "reference_ndcg_at_10": float(reference.mean()) if n else 0.0,
            "fused_ndcg_at_10": float(served.mean()) if n else 0.0,
            "reference_recall_at_10": float((reference > 0).mean()) if n else 0.0,
            "fused_recall_at_10": float((served > 0).mean()) if n else 0.0,
        }
