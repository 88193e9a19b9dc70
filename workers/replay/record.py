"""Records a replay: one row per event, and the figures computed from the rows. Pure: messages in, figures out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.measuring.intervals import paired_interval
from schemas.messages import KnowledgeUpdate, Recommendation
from streams.profile.fold import Event
from workers.measurement.prequential import TOP, Offer, Prequential


@dataclass(frozen=True, slots=True)
class Columns:
    """One row per predicted event, in time order. Every policy predicts the same events of a data set.

    Args: place: (n,) the event's place among the played events. user: (n,) user ids. served, reference: (n,) NDCG@10 of
        the served list and of behaviour alone. age_s: (n,) event time since the newest event that the used knowledge
        includes, seconds; NaN = no knowledge used. age_events: (n,) number of the user's events since that event; −1 =
        no knowledge used.
    """

    place: NDArray[np.int64]
    user: NDArray[np.str_]
    served: NDArray[np.float64]
    reference: NDArray[np.float64]
    age_s: NDArray[np.float64]
    age_events: NDArray[np.int64]


@dataclass
class ReplayRecord:
    """The running record of a replay."""

    quality: Prequential = field(default_factory=Prequential)
    offers: dict[str, Offer] = field(default_factory=dict)
    places: list[int] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    refreshes: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    recommendations: int = 0
    events: int = 0
    calls: int = 0
    stocked: int = 0  # generations not requested by the policy, see `play.stocked`
    rejected: int = 0
    _made_from: dict[str, float] = field(default_factory=dict)  # user → newest event in the offer's knowledge

    def predicted(self, event: Event, place: int, count: int) -> None:
        """Score the user's current offer against an event, the user's number `count`."""
        self.events += 1
        offer = self.offers.get(event.user_id)
        self.quality.judge(event.user_id, event.item_id, count, offer, event.event_time)
        if offer is not None:
            self.places.append(place)
            known = self._made_from.get(event.user_id)
            self.ages_s.append(float("nan") if known is None else event.event_time - known)

    def recommended(self, message: Recommendation) -> None:
        """Record a recommendation as the user's current offer."""
        self.recommendations += 1
        fused = message.source == "fused"
        if message.fallback is not None:
            self.fallbacks[message.fallback] += 1
        self._made_from.pop(message.user_id, None)
        if fused and message.knowledge_age_s is not None:
            self._made_from[message.user_id] = message.event_time - message.knowledge_age_s
        behind = message.knowledge_behind
        self.offers[message.user_id] = Offer(
            [item.item_id for item in message.items[:TOP]], message.reference[:TOP], fused, message.count,
            message.count - behind if fused and behind is not None else None)

    def refreshed(self, message: KnowledgeUpdate) -> None:
        """Count new knowledge by reason."""
        if message.written:
            self.refreshes[message.reason] += 1

    def columns(self) -> Columns:
        """Return the rows in time order, independent of how events were grouped into waves."""
        order = np.argsort(self.places, kind="stable")
        return Columns(
            np.array(self.places, np.int64)[order], np.array(self.quality.users, np.str_)[order],
            np.array(self.quality.served)[order], np.array(self.quality.reference)[order],
            np.array(self.ages_s)[order], np.array(self.quality.age, np.int64)[order])

    def figures(self, seed: int) -> dict[str, Any]:
        """Return the figures of the whole replay.

        Args:
            seed: of the bootstrap.
        """
        rows = self.columns()
        gain, low, high = paired_interval(rows.user, rows.served - rows.reference, seed=seed)
        used = rows.age_events >= 0
        return {
            "events": self.events, "predicted": len(rows.place), "unpredicted": self.quality.unpredicted,
            "calls": self.calls, "stocked": self.stocked,
            "calls_per_1000": 1000.0 * self.calls / max(1, self.events),
            "ndcg_at_10": _mean(rows.served), "recall_at_10": _mean(rows.served > 0),
            "reference_ndcg_at_10": _mean(rows.reference), "reference_recall_at_10": _mean(rows.reference > 0),
            "gain": gain, "gain_interval": [low, high],
            "with_knowledge": int(used.sum()),
            "median_age_s": float(np.median(rows.age_s[used])) if used.any() else None,
            "median_age_events": float(np.median(rows.age_events[used])) if used.any() else None,
            "refreshes": dict(sorted(self.refreshes.items())), "rejected": self.rejected,
            "fallbacks": dict(sorted(self.fallbacks.items())), "recommendations": self.recommendations,
        }


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0
