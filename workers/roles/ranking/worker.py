"""The ranking worker: recommends when a user's state has changed, and judges knowledge by the user's newest events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from cachetools import TTLCache
from torch import Tensor

from models.compute.devices import gpu_memory
from models.measuring.harm import DELTA
from models.serving.requests import RankBatch, RankResult, UserKnowledge, seen_items
from models.trust.lists import best, lists
from models.trust.region import log_probabilities
from schemas.experiment import Arm, arm
from schemas.messages import (
    Fallback,
    Judgement,
    Margin,
    RankingRequest,
    Recommendation,
    ScoredItem,
    Source,
)
from schemas.settings import ExperimentSettings, RankingSettings, Settings
from schemas.topics import JUDGEMENTS, KNOWLEDGE_REQUESTS, RANKING_REQUESTS, RECOMMENDATIONS
from schemas.watch.instruments import histogram, show
from workers.kafka.lag import RANKING_GROUP
from workers.kafka.outbox import Output, tombstone
from workers.kafka.topics import create_topics
from workers.roles.ranking.later import CatalogueFollower
from workers.roles.ranking.merging import UserRequests, in_parts, merge
from workers.roles.ranking.popular import KeptPopular, PopularNow
from workers.roles.ranking.ranker import Ranker
from workers.roles.ranking.rules import NO_FILTERS, Arranged, Filters, ListRules
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
# Scores of a forward pass: each of its five or six arrays takes 64 MB. 256 lists of 100,000 items would need more.
SCORES = 16_000_000
# Items that are not popular, or no more, come after those that are, in the order of the reference.
_UNPOPULAR = 1e-6
_SECONDS = histogram("freshet_stage_seconds")
_LOOK_UP, _RANK, _JUDGE, _RECOMMEND = (
    _SECONDS.labels(ROLE, stage) for stage in ("look_up", "rank", "judge", "recommend"))
_MARGIN, _TRUST, _KL = histogram("freshet_margin_nats"), histogram("freshet_trust_ratio"), histogram("freshet_kl_nats")
_LOSS_BOUND = histogram("freshet_loss_bound_nats")
_AGE, _BEHIND = histogram("freshet_knowledge_age_seconds"), histogram("freshet_knowledge_behind_events")
_WAITED = histogram("freshet_recommendation_seconds")


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
            "unknown_items": 0, "no_knowledge": 0, "no_history": 0, "store_unavailable": 0, "damaged_knowledge": 0,
            "old_knowledge": 0, "no_trust": 0, "control": 0, "repairs": 0, "changed": 0, "bound_reached": 0, "ruled": 0,
            "margin_gain": 0.0, "margin_loss": 0.0}
        self._rank_s = 0.0
        self._rules = ListRules(settings)
        self.popularity = PopularNow(settings.popular_days * 86_400.0, ranker.popular)
        self._asked: TTLCache[str, None] = TTLCache(*_ASKED)

    def counters(self) -> dict[str, Any]:
        """Return the counters for the role's progress file."""
        return self._counts | {
            "rank_s": round(self._rank_s, 3), "cache_hits": self._reader.hits, "cache_misses": self._reader.misses,
            "store_available": self._reader.available, "model_version": self._ranker.model_version,
            "withheld_items": 0 if self._ranker.withheld is None else int(self._ranker.withheld.sum())}

    def __call__(self, requests: Sequence[RankingRequest]) -> list[list[Output]]:
        """Return the outputs, in parts of so many users that their scores fit into memory."""
        self._count_events(requests)
        users = merge(requests)
        self._counts["requests"] += len(requests)
        self._counts["superseded"] += len(requests) - len(users)
        return [self._part(part) for part in in_parts(users, SCORES // self._ranker.model.n_items)]

    def _part(self, users: Sequence[UserRequests]) -> list[Output]:
        started = time.perf_counter()
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
        self._rank_s += time.perf_counter() - started
        return [*recommendations, *judgements, *repairs]

    def _count_events(self, requests: Sequence[RankingRequest]) -> None:
        """Count the new events of requests for what is popular."""
        now = self._clock()
        for request in requests:
            if request.judged or request.weights:
                events = [(event.item_id, 1.0) for event in request.judged if event.item_id not in request.weights]
                self.popularity.add((*events, *request.weights.items()), min(request.event_time, now))

    def forget(self, users: Sequence[str]) -> list[Output]:
        """Forget users, and end what was written of them.

        Also the requests for their knowledge: one that this worker sent as a repair may be on its way after the last
        one of streams.
        """
        self._reader.drop(users)
        for user in users:
            self._asked.pop(user, None)
        return [tombstone(topic, user) for user in users for topic in (RECOMMENDATIONS, JUDGEMENTS, KNOWLEDGE_REQUESTS)]

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
        new = self._without_history(users, points)
        reference, fused = rank.ref_logp, rank.fused_logp
        if new or len(answered) < len(rows):  # a copy, to change it
            reference, fused = reference[answered], fused[answered]
        if new:
            reference[new] = fused[new] = self._popular(reference[new], [users[at].newest for at in new])
        ruled = self._rules.follow(self._ranker.catalogue, [user.newest for user in users])
        asked = [self._rules.asked(user.newest) for user in users] if ruled else []
        filters, whole = self._rules.filters(asked, reference.shape[1]) if ruled else NO_FILTERS, (reference, fused)
        reference, fused = filters.apply(reference), filters.apply(fused)
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
        for at in new:
            fallbacks[users[at].newest.user_id] = "no_history"
        served = [at for at, user in enumerate(users) if not bool(nothing_left[at]) and (
            user.newest.user_id not in fallbacks
            or (everyone and epsilon[at] > 0 and fallbacks[user.newest.user_id] in _WITHOUT_VECTORS))]
        moved, popular = frozenset(served), frozenset(new)
        radii = torch.tensor([epsilon[at] if at in moved else 0.0 for at in range(len(users))], dtype=torch.float64)
        found, share, kl = self._lists(reference, fused, radii)
        behaviour, _, _ = self._lists(reference, reference, torch.zeros_like(radii))
        changed = [one.rules for one in found]
        for at, before in self._unfiltered(filters, whole, radii).items():
            changed[at] = (*self._rules.changed(before, found[at].rows, asked[at]), *changed[at])
        names = self._ranker.items
        now = self._clock()
        out = []
        for at, user in enumerate(users):
            fallback = fallbacks.get(user.newest.user_id)
            source: Source = ("popular" if at in popular else "fused" if fallback is None else
                              "items" if at in moved else "reference")
            answer = self._answer(
                user, [ScoredItem(item_id=names[row], score=score) for row, score in found[at].scored()],
                [names[row] for row in behaviour[at].rows], source, fallback,
                points.get(user.newest.user_id) if fallback is None else None, list(changed[at]),
                lagrange=1 / share[at] if share[at] > 0 else None, kl=kl[at], epsilon=epsilon[at], now=now)
            out.append(Output(RECOMMENDATIONS, user.newest.user_id, answer))
            self._counts["fused" if fallback is None else fallback] += 1
            self._counts["items"] += source == "items"
            self._counts["ruled"] += bool(changed[at])
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

    def _lists(
        self, reference: Tensor, fused: Tensor, radii: Tensor,
    ) -> tuple[list[Arranged], list[float], list[float]]:
        """Return the lists within `radii` (B,) of the reference, and 1/μ and KL per user."""
        top, n = self._settings.top, reference.shape[1]
        width = self._rules.width(top, n)
        found = lists(reference, fused, radii, width)
        # As in the region, but an item without a bound has one here: a pin stands where it does whatever its score.
        pins = list(self._rules.pins(n))
        floor = reference[:, pins] - radii.clamp(max=DELTA)[:, None]
        pinned = torch.maximum(floor, fused[:, pins] + found.share.log()[:, None])
        out = self._rules.arrange(found.items, found.logp, pinned, top, pins)
        short = [at for at, one in enumerate(out) if one.short] if width < n else []
        if short:  # limits took too many of the best: look at all
            every = lists(reference[short], fused[short], radii[short], n)
            again = self._rules.arrange(every.items, every.logp, pinned[short], top, pins)
            for at, one in zip(short, again, strict=True):
                out[at] = one
        return out, found.share.tolist(), found.kl.tolist()

    def _without_history(self, users: Sequence[UserRequests], points: Mapping[str, KnowledgePoint]) -> list[int]:
        """Return the places of the users of whom nothing is known: no item of their history, and no knowledge."""
        return [at for at, user in enumerate(users) if user.newest.user_id not in points
                and all(self._ranker.row(item) < 0 for item in user.newest.history)]

    def _popular(self, reference: Tensor, requests: Sequence[RankingRequest]) -> Tensor:
        """Return log-probabilities (m, n) of what is popular; where nothing is, of the reference for no history."""
        n = reference.shape[1]
        share = torch.from_numpy(self.popularity.shares(self._ranker.catalogue.rows, n))
        out = (share + _UNPOPULAR * reference.exp()).log()
        seen = [self._rows(request.seen) for request in requests]
        out[seen_items([[] for _ in seen], seen)] = -torch.inf
        if self._ranker.withheld is not None:
            out[:, self._ranker.withheld] = -torch.inf
        return log_probabilities(out)

    def _unfiltered(
        self, filters: Filters, whole: tuple[Tensor, Tensor], radii: Tensor,
    ) -> dict[int, list[int]]:
        """Return the rows that would be served without filters and factors, of the lists that these may have changed.

        What is among the first of a served list is among the first of the reference or of the fused scores.
        """
        if filters is NO_FILTERS:
            return {}
        firsts = torch.cat([best(logp, self._settings.top)[1] for logp in whole], dim=1)
        at = torch.nonzero(filters.touches(firsts)).flatten().tolist()
        before, _, _ = self._lists(whole[0][at], whole[1][at], radii[at])
        return dict(zip(at, [one.rows for one in before], strict=True))

    def _answer(
        self, user: UserRequests, items: list[ScoredItem], reference: list[str], source: Source,
        fallback: Fallback | None, point: KnowledgePoint | None, rules: list[str], *, lagrange: float | None,
        kl: float, epsilon: float, now: float,
    ) -> Recommendation:
        newest = user.newest
        return Recommendation(
            user_id=newest.user_id, items=items, reference=reference, source=source, fallback=fallback,
            written=self._ranker.quotes([item.item_id for item in items]) if self._settings.quote else {},
            rules=rules, reason=user.reason, lagrange=lagrange, kl=kl, epsilon=epsilon,
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
    kept = KeptPopular(processor.popularity, settings.home / "ranking" / "popular.msgpack")
    catalogue = CatalogueFollower(ranker, settings)
    catalogue.catch_up()
    show(gpu_memory)

    def follow() -> None:
        updates.poll()
        catalogue.poll()
        kept.save()

    worker = StreamWorker(
        settings, ROLE, RANKING_GROUP, RANKING_REQUESTS, processor, batch=settings.ranking.batch,
        between=follow, forget=processor.forget,
        counters=lambda: processor.counters() | updates.counters() | catalogue.counters())
    try:
        worker.run()
    finally:
        kept.save(now=True)
        catalogue.close()
        updates.close()
        reader.close()
        store.close()
