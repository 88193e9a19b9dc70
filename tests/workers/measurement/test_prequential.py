import math

import pytest

from workers.measurement.prequential import Offer, Prequential, ndcg


def offer(served: list[str], reference: list[str], count: int = 1, knowledge: int | None = 1) -> Offer:
    return Offer(served, reference, knowledge is not None, count, knowledge)


def test_ndcg_of_one_item() -> None:
    items = [str(number) for number in range(20)]
    assert ndcg(items, "0") == 1.0
    assert ndcg(items, "2") == pytest.approx(0.5)
    assert ndcg(items, "9") == pytest.approx(1 / math.log2(11))
    assert ndcg(items, "10") == 0.0
    assert ndcg([], "1") == 0.0


def test_an_event_before_the_first_recommendation_is_not_scored() -> None:
    quality = Prequential()
    quality.judge("u", "a", 1, None, 0.0)
    summary = quality.summary()
    assert (summary["n"], summary["unpredicted"]) == (0, 1)
    assert summary["ndcg_gain_interval"] == [0.0, 0.0]


def test_running_figures_are_means() -> None:
    quality = Prequential()
    quality.judge("u", "a", 2, offer(["a", "b"], ["b", "a"]), 0.0)
    quality.judge("u", "c", 3, offer(["a", "b"], ["c"]), 0.0)
    running = quality.running()
    assert running["fused"] == {"recall_at_10": 0.5, "ndcg_at_10": 0.5}
    assert running["reference"]["recall_at_10"] == 1.0
    assert running["reference"]["ndcg_at_10"] == pytest.approx((1 / math.log2(3) + 1) / 2)


def test_staleness_counts_events_that_the_recommendation_did_not_include() -> None:
    quality = Prequential()
    quality.judge("u", "a", 10, offer(["a"], ["b"], count=9, knowledge=4), 0.0)  # knowledge is 5 behind
    quality.judge("u", "a", 10, offer(["a"], ["b"], count=7, knowledge=None), 0.0)
    summary = quality.summary()
    assert summary["by_staleness"]["0"]["n"] == 1
    assert summary["by_staleness"]["1-3"]["n"] == 1
    assert summary["by_knowledge_age"]["0-5"]["n"] == 1
    assert summary["by_knowledge_age"]["none"]["n"] == 1
    assert summary["with_knowledge"]["n"] == 1
