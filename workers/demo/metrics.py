"""Measurements of a demo: takes messages and samples, returns the report's figures. Pure: times are arguments."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.messages import DeadLetter, KnowledgeRequest, KnowledgeUpdate, Recommendation
from workers.demo.diary import Diary
from workers.measurement.experiment import RunningExperiment
from workers.measurement.prequential import Offer, Prequential

REASONS = ("cold_start", "drift", "contradiction", "stale")


@dataclass(frozen=True, slots=True)
class Sample:
    """State of the stream at one moment, taken about once a second.

    Args:
        at: seconds since the stream began.
        lag: uncommitted records per consumer group.
    """

    at: float
    events: int
    recommendations: int
    unanswered: int
    lag: dict[str, int]
    refreshes: dict[str, int]
    reference_ndcg: float
    fused_ndcg: float


@dataclass
class Metrics:
    """Everything counted during the stream. `trial` is set if an experiment runs."""

    quality: Prequential = field(default_factory=Prequential)
    offers: dict[str, Offer] = field(default_factory=dict)
    users: set[str] = field(default_factory=set)
    events: int = 0
    recommendations: int = 0
    recommendation_reasons: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    refreshes: Counter[str] = field(default_factory=Counter)
    requested: Counter[str] = field(default_factory=Counter)
    llm_calls: int = 0
    freshness: list[float] = field(default_factory=list)
    response: list[float] = field(default_factory=list)
    lagrange: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    epsilon: list[float] = field(default_factory=list)
    streams_s: list[float] = field(default_factory=list)
    ranking_s: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)  # newest version requested, per user
    made: dict[str, int] = field(default_factory=dict)  # newest version generated, per user
    trial: RunningExperiment | None = None
    diary: Diary = field(default_factory=Diary)

    def produced(self, user: str, item: str, count: int, now: float) -> None:
        """Record an event about to be sent, the user's number `count`, and score it against the user's current offer.
        """
        self.quality.judge(user, item, count, self.offers.get(user), now)
        self.users.add(user)
        self.events += 1

    def recommended(self, message: Recommendation) -> None:
        """Record a recommendation. It becomes the user's offer unless it includes fewer events than the current offer.
        """
        self.recommendations += 1
        self.diary.recommended(message)
        if self.trial is not None:
            self.trial.add_recommendation(message)
        self.recommendation_reasons[message.reason] += 1
        if message.reason == "event":
            self.streams_s.append(message.requested_at - message.caused_at)
            self.ranking_s.append(message.ranked_at - message.requested_at)
        if message.fallback:
            self.fallbacks[message.fallback] += 1
        if message.source == "fused" and message.lagrange is not None:
            self.lagrange.append(message.lagrange)
            self.kl.append(message.kl)
            self.epsilon.append(message.epsilon)
        held = self.offers.get(message.user_id)
        if held is None or message.count >= held.count:
            behind = message.knowledge_behind
            self.offers[message.user_id] = Offer(
                served=[item.item_id for item in message.items[:10]], reference=message.reference[:10],
                fused=message.source == "fused", count=message.count,
                knowledge_count=None if behind is None or message.source != "fused" else message.count - behind)

    def answered(self, seconds: float) -> None:
        """Record the seconds from sending an event to the first recommendation that includes it."""
        self.response.append(seconds)

    def refresh_requested(self, message: KnowledgeRequest) -> None:
        """Record a request for new knowledge."""
        self.diary.requested(message)
        if message.version > self.asked.get(message.user_id, 0):
            self.asked[message.user_id] = message.version
            self.requested[message.reason] += 1

    def refreshed(self, message: KnowledgeUpdate) -> None:
        """Record that new knowledge is readable in the store."""
        self.llm_calls += 1
        self.diary.refreshed(message)
        self.made[message.user_id] = max(message.version, self.made.get(message.user_id, 0))
        if message.written:
            self.refreshes[message.reason] += 1
            self.freshness.append(message.generated_at - message.caused_at)

    def dead_lettered(self, message: DeadLetter) -> None:
        """Record a dead letter."""
        self.dead_letters[message.topic] += 1

    @property
    def refreshes_waiting(self) -> int:
        """Number of users whose newest request has not been answered with knowledge yet."""
        return sum(version > self.made.get(user, 0) for user, version in self.asked.items())

    def sample(self, at: float, unanswered: int, lag: dict[str, int]) -> None:
        """Store a sample for the plots."""
        running = self.quality.running()
        self.samples.append(Sample(
            at, self.events, self.recommendations, unanswered, dict(lag), dict(self.refreshes),
            running["reference"]["ndcg_at_10"], running["fused"]["ndcg_at_10"]))

    def figures(self, stream_s: float, seed: int = 0) -> dict[str, Any]:
        """Return the report's figures for a stream that took `stream_s` seconds."""
        return {
            "events": self.events,
            "events_per_s": self.events / stream_s if stream_s > 0 else 0.0,
            "users": len(self.users),
            "recommendations": self.recommendations,
            "recommendations_by_reason": dict(self.recommendation_reasons),
            "fallbacks": dict(self.fallbacks),
            "dead_letters": sum(self.dead_letters.values()),
            "refreshes": {reason: self.refreshes[reason] for reason in REASONS},
            "refreshes_requested": {reason: self.requested[reason] for reason in REASONS},
            "llm_calls": self.llm_calls,
            "llm_calls_per_1000_events": 1000 * self.llm_calls / max(1, self.events),
            "freshness_s": percentiles(self.freshness),
            "event_to_recommendation_s": percentiles(self.response),
            "stage_latency_s": {"streams": percentiles(self.streams_s), "ranking": percentiles(self.ranking_s)},
            "mu": percentiles(self.lagrange),
            "kl": percentiles(self.kl),
            "quality": self.quality.summary(seed),
            "experiment": self.trial.figures() if self.trial is not None else None,
        }


def percentiles(values: list[float]) -> dict[str, float | None]:
    """Return p50, p99 and the number of values; the percentiles are None for an empty list."""
    if not values:
        return {"p50": None, "p99": None, "n": 0}
    p50, p99 = np.percentile(np.array(values), (50, 99))
    return {"p50": float(p50), "p99": float(p99), "n": len(values)}
