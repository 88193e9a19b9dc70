from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.serving.requests import RankBatch, UserKnowledge
from schemas.errors import FreshetError
from schemas.experiment import arm
from schemas.messages import JudgedEvent, Judgement, ModelUpdate, RankingRequest, Recommendation
from schemas.settings import ExperimentSettings, QdrantSettings, RankingSettings
from schemas.topics import KNOWLEDGE_REQUESTS
from tests.workers.fitted import DIM, ITEMS, publish, ranking_model, settings_in
from tests.workers.store.test_store import write_raw
from workers.catalogue.view import Entry
from workers.kafka.outbox import Output
from workers.roles.ranking.ranker import Ranker
from workers.roles.ranking.worker import RankingProcessor
from workers.store import KnowledgePoint, QdrantStore
from workers.store.cache import CachedReader
from workers.store.embedded.engine import EdgeStore
from workers.store.point import Found, payload

TOP = 5


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    store = EdgeStore(tmp_path / "store", DIM)
    store.ensure()
    yield store
    store.close()


@pytest.fixture
def ranker() -> Ranker:
    return Ranker(ranking_model(), ITEMS, "m1", epsilon=0.1)


def processor(ranker: Ranker, store: EdgeStore | QdrantStore, **more: object) -> RankingProcessor:
    settings = RankingSettings(top=TOP, epsilon=more.pop("epsilon", None))  # type: ignore[arg-type]
    return RankingProcessor(ranker, CachedReader(store), settings, clock=lambda: 99.0, **more)  # type: ignore[arg-type]


def point(user: str, version: int = 1, count: int = 2, model_version: str = "m1", seed: int = 0) -> KnowledgePoint:
    vectors = np.random.default_rng(seed).normal(size=(3, DIM)).astype(np.float16) / 3
    return KnowledgePoint(user, version, model_version, vectors, np.ones(DIM, np.float32), "h", "drift", 10.0, 1000.0,
                          count, codes=(4, 0, 2))


def request(user: str = "ann", history: Sequence[str] = ("i1", "i2", "i3", "i4"), **fields: object) -> RankingRequest:
    made = RankingRequest(
        user_id=user, reason="event", history=list(history), count=4, knowledge_version=1, event_time=1500.0,
        caused_at=20.0, requested_at=30.0)
    return made.model_copy(update=fields)


def judged(item: str, position: int, count: int) -> JudgedEvent:
    return JudgedEvent(event_id=f"e{count}", item_id=item, position=position, count=count)


def split(out: Sequence[Sequence[Output]]) -> tuple[dict[str, Recommendation], dict[str, Judgement]]:
    messages = [one.message for part in out for one in part]
    return ({m.user_id: m for m in messages if isinstance(m, Recommendation)},
            {m.user_id: m for m in messages if isinstance(m, Judgement)})


def test_a_recommendation_has_every_field(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann")])
    (rec,) = split(processor(ranker, store)([request(seen=["i20"])]))[0].values()
    assert (rec.source, rec.fallback, rec.reason) == ("fused", None, "event")
    assert rec.kl > 0
    assert rec.epsilon == pytest.approx(0.1)
    assert rec.lagrange is not None
    assert rec.lagrange > 1
    assert (rec.knowledge_version, rec.knowledge_age_s, rec.knowledge_behind) == (1, 500.0, 2)
    assert (rec.model_version, rec.event_time, rec.count) == ("m1", 1500.0, 4)
    assert (rec.caused_at, rec.requested_at, rec.ranked_at) == (20.0, 30.0, 99.0)
    assert len(rec.items) == len(rec.reference) == TOP
    assert not {"i1", "i2", "i3", "i4", "i20"} & {item.item_id for item in rec.items}
    scores = [item.score for item in rec.items]
    assert scores == sorted(scores, reverse=True)
    assert all(score < 0 for score in scores)


def test_a_recommendation_quotes_what_was_written_if_it_is_told_to(store: EdgeStore) -> None:
    texts = [f"about {item}" if item != "i9" else "" for item in ITEMS]
    ranker = Ranker(ranking_model(), ITEMS, "m1", 0.1, written=texts)
    (plain,) = split(processor(ranker, store)([request()]))[0].values()
    assert plain.written == {}
    settings = RankingSettings(top=len(ITEMS), quote=True)
    (rec,) = split(RankingProcessor(ranker, CachedReader(store), settings)([request()]))[0].values()
    assert rec.written == {item.item_id: f"about {item.item_id}" for item in rec.items if item.item_id != "i9"}
    assert "i9" in {item.item_id for item in rec.items}
    without = Ranker(ranking_model(), ITEMS, "m1", epsilon=0.1)
    (rec,) = split(RankingProcessor(without, CachedReader(store), settings)([request()]))[0].values()
    assert rec.written == {}


def test_served_scores_lie_in_the_trust_region(ranker: Ranker, store: EdgeStore) -> None:
    known = point("ann")
    store.upsert([known])
    (rec,) = split(processor(ranker, store)([request()]))[0].values()
    result = ranker.model.rank(RankBatch([[1, 2, 3, 4]], [[]], [UserKnowledge(known.vectors)], current_evidence=True))
    ref, fused = result.ref_logp[0].double(), result.fused_logp[0].double()
    allowed = torch.isfinite(ref)
    assert rec.lagrange is not None
    within = torch.maximum(ref[allowed] - rec.epsilon, fused[allowed] - np.log(rec.lagrange))
    assert float(within.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    best = within.topk(TOP).values.tolist()
    assert [item.score for item in rec.items] == pytest.approx(best, abs=1e-5)


def test_a_wide_radius_serves_the_fused_scores(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann")])
    (rec,) = split(processor(ranker, store, epsilon=100.0)([request()]))[0].values()
    assert rec.lagrange == 1.0
    assert 0 < rec.kl < 100


@pytest.mark.parametrize(("trust", "epsilon"), [(0.0, None), (1.0, 0.0)])
def test_zero_trust_serves_exactly_the_reference(
    ranker: Ranker, store: EdgeStore, trust: float, epsilon: float | None,
) -> None:
    store.upsert([point("ann")])
    asked = request(trust=trust, judged=[judged("i4", 3, 4)])
    recs, judgements = split(processor(ranker, store, epsilon=epsilon)([asked]))
    rec = recs["ann"]
    plain = split(processor(ranker, store)([request(knowledge_version=0)]))[0]["ann"]
    assert rec.items == plain.items
    assert [item.item_id for item in rec.items] == rec.reference
    assert (rec.source, rec.fallback, rec.lagrange, rec.kl, rec.epsilon) == ("reference", "no_trust", None, 0.0, 0.0)
    assert rec.knowledge_version == 0
    assert judgements["ann"].margins[0].count == 4  # knowledge is still judged


def test_control_users_are_served_exactly_the_reference_and_still_judged(ranker: Ranker, store: EdgeStore) -> None:
    running = ExperimentSettings("first", 0.5)
    users = [f"u{number}" for number in range(20)]
    store.upsert([point(user, seed=number) for number, user in enumerate(users)])
    asked = [request(user, judged=[judged("i4", 3, 4)]) for user in users]
    recs, judgements = split(processor(ranker, store, experiment=running)(asked))
    plain, same = split(processor(ranker, store)(asked))
    behaviour, _ = split(processor(ranker, store)([request(user, knowledge_version=0) for user in users]))
    assert judgements == same  # the arms differ only in what is served
    assert {rec.arm for rec in recs.values()} == {"control", "treatment"}
    for user, rec in recs.items():
        assert (rec.experiment, rec.arm) == ("first", arm(user, "first", 0.5))
        if rec.arm == "treatment":
            assert rec == plain[user].model_copy(update={"experiment": "first", "arm": "treatment"})
            continue
        assert rec.items == behaviour[user].items
        assert [item.item_id for item in rec.items] == rec.reference
        assert (rec.source, rec.fallback, rec.lagrange, rec.kl, rec.epsilon) == ("reference", "control", None, 0, 0)
        assert (rec.knowledge_version, rec.knowledge_age_s) == (0, None)
    assert {(rec.experiment, rec.arm) for rec in plain.values()} == {("", "")}


def test_trust_scales_the_radius(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann")])
    (rec,) = split(processor(ranker, store)([request(trust=0.25)]))[0].values()
    (full,) = split(processor(ranker, store)([request()]))[0].values()
    assert rec.epsilon == pytest.approx(0.025)
    assert 0 < rec.kl < full.kl
    assert rec.lagrange > full.lagrange


def test_a_user_without_knowledge_gets_the_fallback_no_knowledge(ranker: Ranker, store: EdgeStore) -> None:
    recs, judgements = split(processor(ranker, store)([
        request("never", knowledge_version=0, judged=[judged("i4", 3, 4)]), request("lost", knowledge_version=3)]))
    assert {rec.fallback for rec in recs.values()} == {"no_knowledge"}
    assert judgements == {}


def test_item_knowledge_is_for_users_without_knowledge_too(store: EdgeStore) -> None:
    model = ranking_model()
    model.everyone = True
    everyone = Ranker(model, ITEMS, "m1", epsilon=0.1)
    store.upsert([point("ann"), point("old", model_version="m0"), point("off")])
    asked = [request("ann"), request("new", knowledge_version=0), request("old"), request("off", trust=0.0),
             request("doubted", knowledge_version=0, trust=0.0)]
    recs, _ = split(processor(everyone, store)(asked))
    assert {user: (rec.source, rec.fallback) for user, rec in recs.items()} == {
        "ann": ("fused", None), "new": ("items", "no_knowledge"), "old": ("items", "old_knowledge"),
        "off": ("reference", "no_trust"), "doubted": ("reference", "no_knowledge")}
    assert recs["new"].items == recs["old"].items != recs["ann"].items
    assert recs["new"].items != recs["off"].items == recs["doubted"].items
    assert [item.item_id for item in recs["off"].items] == recs["off"].reference
    for user in ("new", "old"):
        assert recs[user].kl > 0
        assert (recs[user].epsilon, recs[user].knowledge_version, recs[user].knowledge_behind) == (0.1, 0, None)
    assert recs["doubted"].kl == 0
    control = split(processor(everyone, store, experiment=ExperimentSettings("all", 0.999))(asked))[0]
    assert (control["new"].source, control["new"].fallback, control["new"].kl) == ("reference", "control", 0.0)


def test_knowledge_of_another_model_is_not_read(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann", model_version="m0")])
    recs, judgements = split(processor(ranker, store)([request(judged=[judged("i4", 3, 4)])]))
    assert (recs["ann"].fallback, recs["ann"].knowledge_version) == ("old_knowledge", 0)
    assert judgements == {}


def test_an_older_version_than_announced_is_used_and_reported(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann", version=2)])
    (rec,) = split(processor(ranker, store)([request(knowledge_version=3)]))[0].values()
    assert (rec.fallback, rec.knowledge_version) == (None, 2)


def test_stored_evidence_is_used_if_configured(ranker: Ranker, store: EdgeStore) -> None:
    known = replace(point("ann"), items=(7, 9), weights=(0.5, 0.25))
    store.upsert([known])
    work = RankingProcessor(ranker, CachedReader(store), RankingSettings(top=TOP, epsilon=100.0, evidence="stored"))
    ((rec,), _) = (list(part.values()) for part in split(work([request()])))
    as_stored = UserKnowledge(known.vectors, np.array(known.items), np.array(known.weights, np.float32), behind=2)
    result = ranker.model.rank(RankBatch([[1, 2, 3, 4]], [[]], [as_stored]))
    best = result.fused_logp[0].topk(TOP)
    assert [item.item_id for item in rec.items] == [ITEMS[row] for row in best.indices.tolist()]
    np.testing.assert_allclose([item.score for item in rec.items], best.values, rtol=1e-5)


def test_margins_come_from_the_model_and_only_for_newer_events(ranker: Ranker, store: EdgeStore) -> None:
    known = point("ann", version=7, count=3)
    store.upsert([known])
    events = [judged("i3", 2, 3), judged("i4", 3, 4), judged("never-seen-item", 4, 5)]
    (judgement,) = split(processor(ranker, store)([request(judged=events, count=5)]))[1].values()
    assert (judgement.knowledge_model_version, judgement.codes) == ("m1", list(known.codes))
    (margin,) = judgement.margins  # the knowledge includes event 3, and event 5's item is unknown
    batch = RankBatch([[1, 2, 3, 4]], [[]], [UserKnowledge(known.vectors)], [[(3, 4)]], current_evidence=True)
    expected = ranker.model.rank(batch).margins[0][0]
    assert (margin.count, margin.item_id, margin.knowledge_version) == (4, "i4", 7)
    assert margin.value == pytest.approx(expected, abs=1e-5)
    assert (judgement.model_version, judgement.event_time, judgement.judged_at) == ("m1", 1500.0, 99.0)


def test_a_superseded_request_is_judged_but_not_answered(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann", count=2)])
    batch = [
        request(history=["i1", "i2", "i3"], count=3, caused_at=10.0, judged=[judged("i3", 2, 3)]),
        request(history=["i1", "i2", "i3", "i4", "i5"], count=5, caused_at=12.0,
                judged=[judged("i4", 3, 4), judged("i5", 4, 5)]),
        request(history=["i1", "i2", "i3", "i4", "i5"], count=5, reason="knowledge", caused_at=13.0),
        request("bob", knowledge_version=0),
    ]
    one_by_one = [m for r in batch[:2] for m in split(processor(ranker, store)([r]))[1]["ann"].margins]
    work = processor(ranker, store)
    recs, judgements = split(work(batch))
    assert set(recs) == {"ann", "bob"}
    # It answers count 5, whose first request was caused by the event.
    assert (recs["ann"].count, recs["ann"].caused_at, recs["ann"].reason) == (5, 12.0, "event")
    margins = judgements["ann"].margins
    assert [m.count for m in margins] == [3, 4, 5]
    assert [m.value for m in margins] == pytest.approx([m.value for m in one_by_one], abs=1e-5)
    assert work.counters()["superseded"] == 2


def test_an_event_in_two_requests_is_judged_once(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann")])
    asked = request(judged=[judged("i4", 3, 4)])
    assert len(split(processor(ranker, store)([asked, asked]))[1]["ann"].margins) == 1


def test_unknown_and_empty_histories_are_answered(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("new")])
    recs, _ = split(processor(ranker, store)([
        request("new", ["x", "y"]), request("none", [], knowledge_version=0),
        request("odd", ["x"], knowledge_version=0)]))
    assert all(len(rec.items) == TOP for rec in recs.values())
    assert recs["none"].items == recs["odd"].items


def test_a_user_who_has_seen_everything_gets_an_empty_list(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann")])
    recs, _ = split(processor(ranker, store)([
        request(seen=ITEMS), request("bob", seen=ITEMS[:-2], history=[ITEMS[0]], knowledge_version=0)]))
    assert recs["ann"].items == []
    assert recs["ann"].reference == []
    assert {item.item_id for item in recs["bob"].items} == set(ITEMS[-2:])


def test_a_batch_gives_the_same_answers_as_single_requests(ranker: Ranker, store: EdgeStore) -> None:
    rng = np.random.default_rng(0)
    store.upsert([point(f"u{i}", seed=i) for i in range(0, 20, 2)])
    batch = [
        request(f"u{i}", [ITEMS[j] for j in rng.integers(0, 30, rng.integers(0, 12))], trust=float(rng.random()),
                knowledge_version=int(i % 2 == 0))
        for i in range(20)]
    together = split(processor(ranker, store)(batch))[0]
    for one in batch:
        alone = split(processor(ranker, store)([one]))[0][one.user_id]
        both = together[one.user_id]
        assert [item.item_id for item in alone.items] == [item.item_id for item in both.items]
        assert alone.kl == pytest.approx(both.kl, abs=1e-6)
        assert (alone.source, alone.fallback) == (both.source, both.fallback)


def test_an_unavailable_store_delays_only_one_batch(ranker: Ranker) -> None:
    away = CachedReader(QdrantStore("http://127.0.0.1:9", DIM, QdrantSettings(timeout_s=1)))
    work = RankingProcessor(ranker, away, RankingSettings(top=TOP))
    started = time.monotonic()
    for _ in range(20):
        (rec,) = split(work([request()]))[0].values()
        assert (rec.source, rec.fallback) == ("reference", "store_unavailable")
    assert time.monotonic() - started < 2
    away.close()


class TestDamagedKnowledge:
    """Its user is served by behaviour and asked for again; the others notice nothing."""

    @pytest.fixture
    def damaged(self, store: EdgeStore) -> EdgeStore:
        store.upsert([point("bob"), point("cyd")])
        hurt = point("ann", 3)
        write_raw(store, "ann", payload(hurt) | {"count": None},
                  {"knowledge": hurt.vectors.tolist(), "pooled": hurt.pooled.tolist()})
        return store

    def test_the_reference_is_served_and_says_why(self, ranker: Ranker, damaged: EdgeStore) -> None:
        work = processor(ranker, damaged)
        out = work([request("bob"), request("ann", knowledge_version=3, judged=[judged("i4", 3, 4)]), request("cyd")])
        recs = split(out)[0]
        assert {user: rec.fallback for user, rec in recs.items()} == {
            "ann": "damaged_knowledge", "bob": None, "cyd": None}
        assert recs["ann"].source == "reference"
        (asked,) = [one for part in out for one in part if one.topic is KNOWLEDGE_REQUESTS]
        assert asked.key == "ann"
        assert (asked.message.version, asked.message.reason, asked.message.count) == (3, "stale", 4)
        assert asked.message.history == ["i1", "i2", "i3", "i4"]
        assert (asked.message.event_id, asked.message.caused_at, asked.message.requested_at) == ("e4", 20.0, 99.0)
        assert work.counters()["damaged_knowledge"] == work.counters()["repairs"] == 1

    def test_it_is_asked_for_once(self, ranker: Ranker, damaged: EdgeStore) -> None:
        work = processor(ranker, damaged)
        asked = [one for _ in range(5) for part in work([request("ann", knowledge_version=3)]) for one in part
                 if one.topic is KNOWLEDGE_REQUESTS]
        assert len(asked) == 1

    def test_knowledge_that_a_lost_store_no_longer_has_is_asked_for_once(
        self, ranker: Ranker, store: EdgeStore,
    ) -> None:
        work = processor(ranker, store)
        out = [work([request("ann", knowledge_version=3), request("new", knowledge_version=0)]) for _ in range(3)]
        assert [rec.fallback for rec in split(out[0])[0].values()] == ["no_knowledge", "no_knowledge"]
        asked = [one for parts in out for part in parts for one in part if one.topic is KNOWLEDGE_REQUESTS]
        assert [(one.key, one.message.version) for one in asked] == [("ann", 3)]
        ranker.has_knowledge = False
        assert processor(ranker, store)([request("ann", knowledge_version=3)])[0][1:] == [], "it would be in vain"

    def test_after_the_repair_it_is_used(self, ranker: Ranker, damaged: EdgeStore) -> None:
        work = processor(ranker, damaged)
        work([request("ann", knowledge_version=3)])
        damaged.discard(damaged.look(["ann"]).damaged.values())
        damaged.upsert([point("ann", 3)])
        (rec,) = split(work([request("ann", knowledge_version=3)]))[0].values()
        assert (rec.source, rec.knowledge_version) == ("fused", 3)


class Flaky(EdgeStore):
    """A store that can be made unavailable."""

    away = False
    calls = 0

    def look(self, user_ids: Sequence[str]) -> Found:
        from schemas.errors import StoreUnavailableError

        self.calls += 1
        if self.away:
            raise StoreUnavailableError("away")
        return super().look(user_ids)

    def count(self) -> int:
        from schemas.errors import StoreUnavailableError

        if self.away:
            raise StoreUnavailableError("away")
        return super().count()


class TestCachedReader:
    @pytest.fixture
    def flaky(self, tmp_path: Path) -> Iterator[Flaky]:
        store = Flaky(tmp_path / "store", DIM)
        store.ensure()
        yield store
        store.close()

    def test_reads_the_store_again_only_for_a_newer_version(self, flaky: Flaky) -> None:
        reader = CachedReader(flaky)
        flaky.upsert([point("ann", 2)])
        for wanted in (1, 2, 2):
            assert reader.read({"ann": wanted}).points["ann"].version == 2
        assert flaky.calls == 1
        flaky.upsert([point("ann", 3)])
        assert reader.read({"ann": 3}).points["ann"].version == 3
        assert flaky.calls == 2

    def test_is_bounded(self, flaky: Flaky) -> None:
        reader = CachedReader(flaky, capacity=3)
        flaky.upsert([point(f"u{i}") for i in range(5)])
        assert len(reader.read({f"u{i}": 1 for i in range(5)}).points) == 5
        assert len(reader._cache) == 3

    def test_serves_from_the_cache_while_the_store_is_unavailable_and_recovers(
        self, flaky: Flaky, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("workers.store.cache._PROBE_S", (0.02, 0.02))
        reader = CachedReader(flaky)
        flaky.upsert([point("ann", 1), point("bob", 1)])
        reader.read({"ann": 1})
        flaky.away = True
        found = reader.read({"ann": 2, "bob": 1})
        assert found.points["ann"].version == 1
        assert found.unavailable == {"ann", "bob"}
        calls = flaky.calls
        reader.read({"bob": 1})
        assert flaky.calls == calls  # no call waits for the store any more
        flaky.away = False
        flaky.upsert([point("ann", 2)])
        deadline = time.monotonic() + 5
        while not reader.available:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert reader.read({"ann": 2, "bob": 1}).points["ann"].version == 2


class TestRanker:
    def test_loads_the_current_model_and_another_on_demand(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        publish(settings, "m2", seed=1)
        publish(settings, "m1")
        ranker = Ranker.load(settings)
        assert (ranker.model_version, ranker.epsilon, ranker.dim) == ("m1", 0.2, DIM)
        with pytest.raises(FreshetError, match="m9"):
            ranker.apply(ModelUpdate(model_version="m9", published_at=1.0))
        assert ranker.model_version == "m1"
        ranker.apply(ModelUpdate(model_version="m2", published_at=1.0))
        assert (ranker.model_version, ranker.compatible("m2"), ranker.compatible("m1")) == ("m2", True, False)

    def test_knowledge_of_an_adapter_is_compatible(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        publish(settings, "m1")
        (tmp_path / "models" / "adapters" / "a1").mkdir(parents=True)
        ranker = Ranker.load(settings)
        ranker.apply(ModelUpdate(model_version="m1-a1", adapter="adapters/a1", published_at=1.0))
        assert (ranker.model_version, ranker.compatible("m1-a1"), ranker.compatible("m1")) == ("m1", True, True)
        assert not math.isnan(ranker.epsilon)


def listed(ranker: Ranker, store: EdgeStore, **fields: object) -> list[str]:
    made = RankingProcessor(ranker, CachedReader(store), RankingSettings(top=len(ITEMS)))
    (rec,) = split(made([request(**fields)]))[0].values()
    assert set(rec.reference) == {item.item_id for item in rec.items}
    return [item.item_id for item in rec.items]


@pytest.mark.parametrize("gone", [Entry("i9", 1, available=False), Entry.gone("i9", 1)])
def test_a_withheld_item_is_in_no_list_and_speaks_in_histories(ranker: Ranker, store: EdgeStore, gone: Entry) -> None:
    store.upsert([point("ann")])
    before = listed(ranker, store)
    spoken = listed(ranker, store, history=["i9", "i2"])
    ranker.take([gone])
    assert set(before) - set(listed(ranker, store)) == {"i9"}
    assert listed(ranker, store, history=["i9", "i2"]) == spoken
    out = processor(ranker, store)([request(judged=[judged("i9", 3, 4)])])
    assert [margin.item_id for margin in split(out)[1]["ann"].margins] == ["i9"]
    ranker.take([Entry("i9", 2)])
    assert listed(ranker, store) == before


def test_withheld_items_stay_so_with_another_fit(tmp_path: Path, store: EdgeStore) -> None:
    settings = settings_in(tmp_path)
    publish(settings, "m1")
    ranker = Ranker.load(settings)
    assert ranker.catalogue.entries[3].text == "3 things"
    ranker.take([Entry("i9", 1, available=False), Entry("i8", 1, "Eight", "Eight")])
    publish(settings, "m2", seed=1)
    ranker.apply(ModelUpdate(model_version="m2", published_at=1.0))
    assert "i9" not in listed(ranker, store)
    assert ranker.catalogue.entries[8].title == "Eight"


def test_nothing_is_recommended_where_everything_is_withheld(ranker: Ranker, store: EdgeStore) -> None:
    ranker.take([Entry(item, 1, available=False) for item in ITEMS])
    assert listed(ranker, store) == []


def test_an_erased_user_leaves_the_cache_and_is_ended_on_every_topic(ranker: Ranker, store: EdgeStore) -> None:
    store.upsert([point("ann"), point("bob")])
    process = processor(ranker, store)
    process([request(), request(user_id="bob")])
    store.erase(["ann", "bob"])
    out = process.forget(["ann"])
    assert [(one.topic.name, one.key, one.message) for one in out] == [
        (topic, "ann", None) for topic in ("recommendations", "judgements", "knowledge-requests")]
    recs, _ = split(process([request(), request(user_id="bob")]))
    assert recs["ann"].fallback == "no_knowledge", "not from the cache"
    assert recs["bob"].fallback is None


def test_a_batch_too_large_for_memory_is_ranked_in_parts(
    ranker: Ranker, store: EdgeStore, monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [request(f"u{n}", history=[f"i{n}", f"i{n + 1}"], knowledge_version=0) for n in range(7)]
    whole = processor(ranker, store)(asked)
    assert len(whole) == 1
    monkeypatch.setattr("workers.roles.ranking.worker.SCORES", 3 * len(ITEMS))
    parts = processor(ranker, store)(asked)
    assert [len(part) for part in parts] == [3, 3, 1]
    for user, one in split(whole)[0].items():
        other = split(parts)[0][user]
        assert [item.item_id for item in one.items] == [item.item_id for item in other.items]
        assert [item.score for item in one.items] == pytest.approx([item.score for item in other.items], abs=1e-5)
    monkeypatch.setattr("workers.roles.ranking.worker.SCORES", 1)
    assert [len(part) for part in processor(ranker, store)(asked)] == [1] * 7
