"""What ranking shows at `/metrics` is what its messages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.liveness import Progress
from schemas.watch.instruments import PROGRESS
from schemas.watch.table import METRICS, series
from tests.schemas.watch.test_table import scraped
from tests.workers.fitted import DIM, ITEMS, ranking_model
from tests.workers.roles.ranking.test_worker import judged, point, processor, request, split
from workers.roles.ranking.ranker import Ranker
from workers.store import QdrantStore

# Of the loop, of an update, after an error, on a GPU: not of one batch.
ELSEWHERE = {"freshet_dead_letters_total", "freshet_lag_records", "freshet_lag_seconds", "freshet_model_waiting",
             "freshet_store_errors_total", "freshet_gpu_memory_bytes"}


def test_every_metric_of_ranking_is_what_its_answers_say(tmp_path: Path) -> None:
    store = QdrantStore(":memory:", DIM)
    store.ensure()
    store.upsert([point("ann"), point("bob", seed=3)])
    ranking = processor(Ranker(ranking_model(), ITEMS, "m1", epsilon=0.1), store)
    PROGRESS.follow("ranking", Progress(tmp_path, "ranking", ranking.counters))
    before = scraped()
    lists, judgements = split(ranking([
        request("ann", judged=[judged("i3", 2, 3), judged("i4", 3, 4)]), request("bob"),
        request("new", knowledge_version=0), request("bob", trust=0.0, count=5)]))
    after = scraped()

    def grown(name: str, *labels: tuple[str, str]) -> float:
        return after[name][labels] - before.get(name, {}).get(labels, 0.0)

    for metric in METRICS:
        if "ranking" in metric.roles and metric.name not in ELSEWHERE:
            for name in series(metric):
                assert name in after, name
    answers = list(lists.values())
    fused = [answer for answer in answers if answer.source == "fused"]
    assert [answer.user_id for answer in fused] == ["ann"]
    made = {dict(labels)["made"]: value for labels, value in after["freshet_recommendations_total"].items() if value}
    assert made == {"fused": 1.0, "no_knowledge": 1.0, "no_trust": 1.0}
    assert after["freshet_requests_superseded_total"][()] == 1
    assert after["freshet_lists_changed_total"][()] == sum(
        [item.item_id for item in answer.items] != answer.reference for answer in fused)
    assert grown("freshet_kl_nats_count") == 1
    assert grown("freshet_kl_nats_sum") == pytest.approx(fused[0].kl)
    assert grown("freshet_knowledge_age_seconds_sum") == fused[0].knowledge_age_s
    assert grown("freshet_knowledge_behind_events_sum") == fused[0].knowledge_behind
    assert grown("freshet_trust_ratio_sum") == 1.0
    assert grown("freshet_loss_bound_nats_sum") == pytest.approx(0.1)
    assert grown("freshet_recommendation_seconds_count", ("reason", "event")) == len(answers)
    assert grown("freshet_recommendation_seconds_sum", ("reason", "event")) == pytest.approx(
        sum(answer.ranked_at - answer.caused_at for answer in answers))
    margins = [margin.value for judgement in judgements.values() for margin in judgement.margins]
    assert len(margins) == grown("freshet_margin_nats_count") > 0
    assert after["freshet_margin_gain_nats_total"][()] - after["freshet_margin_loss_nats_total"][()] == pytest.approx(
        sum(margins))
    assert grown("freshet_store_request_seconds_count", ("operation", "read")) == 1
