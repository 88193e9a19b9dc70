"""The ranking worker: recommends when a user's state has changed, and judges knowledge by the user's newest events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from cachetools import TTLCache
from torch import Tensor

from models.compute.devices import gpu_memory
from models.measuring.harm import DELTA
from models.serving.requests import RankBatch, RankResult, UserKnowledge
from models.trust.lists import best, lists
from schemas.experiment import Arm, arm
from schemas.messages import (
    Fallback,
    Judgement,
    KnowledgeRequest,
    Margin,
    RankingRequest,
    Recommendation,
    ScoredItem,
    Source,
)
from schemas.settings import ExperimentSettings, RankingSettings, Settings
from schemas.topics import JUDGEMENTS, KNOWLEDGE_REQUESTS, RANKING_REQUESTS, RECOMMENDATIONS
from schemas.watch.instruments import histogram, show
from workers.catalogue.reader import CatalogueReader
from workers.kafka.lag import RANKING_GROUP
from workers.kafka.outbox import Output
from workers.kafka.topics import create_topics
from workers.roles.ranking.ranker import Ranker
from workers.runtime.loop import StreamWorker
from workers.runtime.model_updates import ModelUpdates
from workers.store.cache import CachedReader
from workers.store.point import KnowledgePoint
from workers.store.qdrant import QdrantStore

log = logging.getLogger(__name__)
ROLE = "ranking"
# Reasons to serve item knowledge without the user's: nothing is wrong with it. In the control arm and without trust,
# users get behaviour alone.
_WITHOUT_VECTORS = frozenset({"no_knowledge", "store_unavailable", "damaged_knowledge", "old_knowledge"})
# Requests for damaged or missing knowledge: at most so many users within so many seconds, each once however often
# ranked.
_ASKED = (1_000, 60.0)
_SECONDS = histogram("freshet_stage_seconds")
_LOOK_UP, _RANK, _JUDGE, _RECOMMEND = (
    _SECONDS.labels(ROLE, stage) for stage in ("look_up", "rank", "judge", "recommend"))
_MARGIN, _TRUST, _KL = histogram("freshet_margin_nats"), histogram("freshet_trust_ratio"), histogram("freshet_kl_nats")
_LOSS_BOUND = histogram("freshet_loss_bound_nats")
_AGE, _BEHIND = histogram("freshet_knowledge_age_seconds"), histogram("freshet_knowledge_behind_events")
_WAITED = histogram("freshet_recommendation_seconds")


class UserRequests:
    """All requests of one user in a batch.

    Only the newest request (highest count, the last one of equals) is answered. Requests with the same count share this
    answer: its cause is the earliest of them, and its reason is `event` if any of theirs is. The events of every
    request are judged, each with its own history.
    """

    def __init__(self, requests: Sequence[RankingRequest]) -> None:
        self.newest = max(enumerate(requests), key=lambda pair: (pair[1].count, pair[0]))[1]
        same = [request for request in requests if request.count == self.newest.count]
        self.caused_at = min(request.caused_at for request in same)
        self.reason = "event" if any(request.reason == "event" for request in same) else self.newest.reason
        # The newest first; an event that occurs in two requests is judged once.
        self.rows = [self.newest, *(r for r in requests if r is not self.newest and r.judged)]
        self.wanted_version = max(request.knowledge_version for request in requests)

    def repair(self, now: float) -> KnowledgeRequest:
        """Return the request to generate the user's damaged or missing knowledge again, in its version.

        Args:
            now: wall clock, seconds.
        """
        newest = self.newest
        return KnowledgeRequest(
            user_id=newest.user_id, version=max(1, self.wanted_version), reason="stale", history=newest.history,
            count=newest.count, event_id=newest.judged[-1].event_id if newest.judged else "",
            event_time=newest.event_time, caused_at=self.caused_at, requested_at=now)


def merge(requests: Sequence[RankingRequest]) -> list[UserRequests]:
    """Return the requests grouped by user, in order of each user's first request."""
    users: dict[str, list[RankingRequest]] = {}
    for request in requests:
        users.setdefault(request.user_id, []).append(request)
    return [UserRequests(group) for group in users.values()]


class RankingProcessor:
    """Turns ranking requests into recommendations and judgements.

    Args: ranker: model and item ids. reader: reads knowledge. settings: items per recommendation, trust radius,
        evidence. clock: wall clock, seconds. experiment: which users are served the reference only. Their knowledge is
        still generated and judged, so that the arms differ only in what is served.
    """

    def __init__(
        self, ranker: Ranker, reader: CachedReader, settings: RankingSettings, clock: Callable[[], float] = time.time,
        experiment: ExperimentSettings | None = None,
    ) -> None:
        self._ranker = ranker
        self._reader = reader
        self._settings = settings
        self._clock = clock
        self._experiment = experiment or ExperimentSettings()
        self._counts = {
            "requests": 0, "superseded": 0, "recommendations": 0, "fused": 0, "items": 0, "margins": 0,
            "unknown_items": 0, "no_knowledge": 0, "store_unavailable": 0, "damaged_knowledge": 0, "old_knowledge": 0,
            "no_trust": 0, "control": 0, "repairs": 0, "changed": 0, "bound_reached": 0,
            "margin_gain": 0.0, "margin_loss": 0.0}
        self._rank_s = 0.0
        self._asked: TTLCache[str, None] = TTLCache(*_ASKED)

    def counters(self) -> dict[str, Any]:
        """Return the counters for the role's progress file."""
        return self._counts | {
            "rank_s": round(self._rank_s, 3), "cache_hits": self._reader.hits, "cache_misses": self._reader.misses,
            "store_available": self._reader.available, "model_version": self._ranker.model_version,
            "withheld_items": 0 if self._ranker.withheld is None else int(self._ranker.withheld.sum())}

    def __call__(self, requests: Sequence[RankingRequest]) -> list[list[Output]]:
        """Return the outputs in a single part."""
        started = time.perf_counter()
        users = merge(requests)
        with _LOOK_UP.time():
            points, fallbacks, repairs = self._knowledge(users)
        rows = [(user, request) for user in users for request in user.rows]
        with _RANK.time():
            rank = self._ranker.model.rank(RankBatch(
                histories=[self._rows(request.history) for _, request in rows],
                seen=[self._rows(request.seen) for _, request in rows],
                knowledge=[_known(points.get(request.user_id), request) for _, request in rows],
                judged=[[(j.position, self._ranker.row(j.item_id)) for j in request.judged] for _, request in rows],
                top=self._settings.top, current_evidence=self._settings.current_evidence,
                withheld=self._ranker.withheld,
                repeats=[request.repeat for _, request in rows] if any(r.repeat for _, r in rows) else ()))
        with _JUDGE.time():
            judgements = self._judge(users, rows, rank, points)
        with _RECOMMEND.time():
            recommendations = self._recommend(users, rows, rank, points, fallbacks)
        self._counts["requests"] += len(requests)
        self._counts["superseded"] += len(requests) - len(users)
        self._rank_s += time.perf_counter() - started
        return [[*recommendations, *judgements, *repairs]]

    def _knowledge(
        self, users: Sequence[UserRequests],
    ) -> tuple[dict[str, KnowledgePoint], dict[str, Fallback], list[Output]]:
        """Return the usable knowledge per user, the fallback reason of the other users, and requests for those whose
        knowledge is damaged or missing.
        """
        wanted = {user.newest.user_id: user.wanted_version for user in users if user.wanted_version > 0}
        found = self._reader.read(wanted)
        points: dict[str, KnowledgePoint] = {}
        fallbacks: dict[str, Fallback] = {}
        repairs: list[Output] = []
        for user in users:
            name = user.newest.user_id
            point = found.points.get(name)
            # Damaged, or its store was lost or restored from before it was made.
            gone = name in wanted and point is None and name not in found.unavailable and self._ranker.has_knowledge
            if gone and name not in self._asked and len(self._asked) < self._asked.maxsize:
                self._asked[name] = None
                repairs.append(Output(KNOWLEDGE_REQUESTS, name, user.repair(self._clock())))
            if point is None:
                fallbacks[name] = ("store_unavailable" if name in found.unavailable else
                                   "damaged_knowledge" if name in found.damaged else "no_knowledge")
            elif not self._ranker.compatible(point.model_version):
                fallbacks[name] = "old_knowledge"
            else:
                points[name] = point
        self._counts["repairs"] += len(repairs)
        return points, fallbacks, repairs

    def _rows(self, items: Sequence[str]) -> list[int]:
        rows = [self._ranker.row(item) for item in items]
        self._counts["unknown_items"] += rows.count(-1)
        return rows

    def _judge(
        self, users: Sequence[UserRequests], rows: Sequence[tuple[UserRequests, RankingRequest]], rank: RankResult,
        points: dict[str, KnowledgePoint],
    ) -> list[Output]:
        """Return one judgement per user with margins. Only events newer than the user's knowledge have a margin."""
        margins: dict[str, dict[str, Margin]] = {}
        for (user, request), values in zip(rows, rank.margins, strict=True):
            point = points.get(user.newest.user_id)
            for event, value in zip(request.judged, values, strict=True):
                if point is not None and value is not None and abs(value) < float("inf") and event.count > point.count:
                    margins.setdefault(request.user_id, {}).setdefault(event.event_id, Margin(
                        event_id=event.event_id, item_id=event.item_id, count=event.count, value=value,
                        knowledge_version=point.version))
        now = self._clock()
        newest = {user.newest.user_id: user.newest for user in users}
        self._counts["margins"] += sum(len(events) for events in margins.values())
        for margin in (one for events in margins.values() for one in events.values()):
            _MARGIN.observe(margin.value)
            self._counts["margin_gain" if margin.value > 0 else "margin_loss"] += abs(margin.value)
        return [
            Output(JUDGEMENTS, name, Judgement(
                user_id=name, margins=sorted(events.values(), key=lambda margin: margin.count),
                model_version=self._ranker.model_version, knowledge_model_version=points[name].model_version,
                codes=list(points[name].codes), event_time=newest[name].event_time, judged_at=now))
            for name, events in margins.items()]

    def _recommend(
        self, users: Sequence[UserRequests], rows: Sequence[tuple[UserRequests, RankingRequest]], rank: RankResult,
        points: dict[str, KnowledgePoint], fallbacks: dict[str, Fallback],
    ) -> list[Output]:
        answered = [at for at, (user, request) in enumerate(rows) if request is user.newest]
        reference, fused = rank.ref_logp[answered], rank.fused_logp[answered]
        nothing_left = ~(reference.amax(1) > -torch.inf)  # every item has been seen; the softmax over none is NaN
        full = self._ranker.epsilon if self._settings.epsilon is None else self._settings.epsilon
        epsilon = [full * user.newest.trust for user in users]
        for at, user in enumerate(users):
            if self._arm(user.newest.user_id) == "control":
                fallbacks[user.newest.user_id], epsilon[at] = "control", 0.0
        for user, radius in zip(users, epsilon, strict=True):
            if radius <= 0 and user.newest.user_id in points:
                fallbacks.setdefault(user.newest.user_id, "no_trust")
        everyone = self._ranker.model.everyone
        served = [at for at, user in enumerate(users) if not bool(nothing_left[at]) and (
            user.newest.user_id not in fallbacks
            or (everyone and epsilon[at] > 0 and fallbacks[user.newest.user_id] in _WITHOUT_VECTORS))]
        moved = frozenset(served)
        radii = torch.tensor([epsilon[at] if at in moved else 0.0 for at in range(len(users))], dtype=torch.float64)
        found = lists(reference, fused, radii, self._settings.top)
        items = self._items(found.items, found.logp)
        behaviour = self._items(*best(reference, self._settings.top)[::-1])
        inverse, kl = found.share.tolist(), found.kl.tolist()
        now = self._clock()
        out = []
        for at, user in enumerate(users):
            fallback = fallbacks.get(user.newest.user_id)
            source: Source = "fused" if fallback is None else "items" if at in moved else "reference"
            answer = self._answer(
                user, items[at], [item.item_id for item in behaviour[at]], source, fallback,
                points.get(user.newest.user_id) if fallback is None else None,
                lagrange=1 / inverse[at] if inverse[at] > 0 else None, kl=kl[at], epsilon=epsilon[at], now=now)
            out.append(Output(RECOMMENDATIONS, user.newest.user_id, answer))
            self._counts["fused" if fallback is None else fallback] += 1
            self._counts["items"] += source == "items"
            self._observe(answer, user.newest.trust)
        self._counts["recommendations"] += len(users)
        return out

    def _observe(self, answer: Recommendation, trust: float) -> None:
        """Note for `/metrics` how late a list is and, if knowledge was used, how old it is and what it did."""
        _WAITED.labels(answer.reason).observe(max(0.0, answer.ranked_at - answer.caused_at))
        if answer.fallback is not None or answer.knowledge_age_s is None:
            return
        self._counts["changed"] += [item.item_id for item in answer.items] != answer.reference
        self._counts["bound_reached"] += answer.lagrange is not None and answer.lagrange > 1
        _AGE.observe(max(0.0, answer.knowledge_age_s))
        _BEHIND.observe(answer.knowledge_behind or 0)
        _TRUST.observe(trust)
        _KL.observe(answer.kl)
        _LOSS_BOUND.observe(min(answer.epsilon, DELTA))

    def _arm(self, user_id: str) -> Arm:
        return arm(user_id, self._experiment.name, self._experiment.control)

    def _items(self, rows: Tensor, logp: Tensor) -> list[list[ScoredItem]]:
        """Return lists of items (B, k), best first; places without an item (−inf or NaN) are left out."""
        names = self._ranker.items
        return [
            [ScoredItem(item_id=names[row], score=score) for score, row in zip(scores, some, strict=True)
             if score > -float("inf")]
            for scores, some in zip(logp.tolist(), rows.tolist(), strict=True)]

    def _answer(
        self, user: UserRequests, items: list[ScoredItem], reference: list[str], source: Source,
        fallback: Fallback | None, point: KnowledgePoint | None, *, lagrange: float | None, kl: float, epsilon: float,
        now: float,
    ) -> Recommendation:
        newest = user.newest
        return Recommendation(
            user_id=newest.user_id, items=items, reference=reference, source=source, fallback=fallback,
            written=self._ranker.quotes([item.item_id for item in items]) if self._settings.quote else {},
            reason=user.reason, lagrange=lagrange, kl=kl, epsilon=epsilon,
            knowledge_version=point.version if point else 0,
            knowledge_age_s=newest.event_time - point.event_time if point else None,
            # Negative only if the user's state was lost but the store was not.
            knowledge_behind=max(0, newest.count - point.count) if point else None,
            model_version=self._ranker.model_version, event_time=newest.event_time, count=newest.count,
            caused_at=user.caused_at, requested_at=newest.requested_at, ranked_at=now,
            experiment=self._experiment.name, arm=self._arm(newest.user_id))


def _known(point: KnowledgePoint | None, request: RankingRequest) -> UserKnowledge | None:
    """Return a user's knowledge in the form that the model takes, with its age in events at the end of the history."""
    if point is None:
        return None
    return UserKnowledge(
        point.vectors, np.array(point.items, np.int64), np.array(point.weights, np.float32),
        max(0, request.count - point.count))


def main(settings: Settings) -> None:
    """Run the worker until SIGTERM.

    Raises:
        FreshetError: there is no model, or the broker cannot be used. The store may be unavailable.
    """
    torch.set_num_threads(1)  # batches of small matrices: more threads only take cores from the other roles
    ranker = Ranker.load(settings)
    store = QdrantStore.of(settings, ranker.dim)
    reader = CachedReader(store)
    processor = RankingProcessor(ranker, reader, settings.ranking, experiment=settings.experiment)
    create_topics(settings.kafka)
    updates = ModelUpdates(settings, ROLE, ranker.model_version, ranker.apply)
    updates.catch_up()
    catalogue = CatalogueReader(settings.kafka)
    ranker.take(catalogue.catch_up())
    show(gpu_memory)

    def follow() -> None:
        updates.poll()
        ranker.take(catalogue.poll())

    worker = StreamWorker(
        settings, ROLE, RANKING_GROUP, RANKING_REQUESTS, processor, batch=settings.ranking.batch,
        between=follow, counters=lambda: processor.counters() | updates.counters())
    try:
        worker.run()
    finally:
        catalogue.close()
        updates.close()
        reader.close()
        store.close()
