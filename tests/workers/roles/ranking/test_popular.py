"""Users without history get what is taken now; it halves with time, is bounded, and survives a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.loading import load_dataset
from models.data.popular import popular_items
from schemas.messages import RankingRequest, Recommendation
from schemas.settings import RankingSettings
from tests.workers.fitted import DIM, ITEMS, ranking_model
from tests.workers.roles.ranking.test_worker import judged, request, split
from workers.catalogue.view import Entry
from workers.roles.ranking.popular import KEPT, MOVE_AFTER, SAVE_EVERY_S, KeptPopular, PopularNow
from workers.roles.ranking.ranker import Ranker
from workers.roles.ranking.worker import RankingProcessor
from workers.store.cache import CachedReader
from workers.store.embedded.engine import EdgeStore

DAY = 86_400.0
ROWS = {item: row for row, item in enumerate(ITEMS)}


@pytest.fixture
def ranker() -> Ranker:
    return Ranker(ranking_model(), ITEMS, "m1", 0.1, popular={"i9": 5.0, "i8": 3.0})


@pytest.fixture
def rank(ranker: Ranker, tmp_path: Path):
    store = EdgeStore(tmp_path / "store", DIM)
    store.ensure()
    processor = RankingProcessor(
        ranker, CachedReader(store), RankingSettings(top=5, popular_days=1.0), clock=lambda: 100 * DAY)

    def one(asked: RankingRequest) -> Recommendation:
        return split(processor([asked]))[0][asked.user_id]

    yield one
    store.close()


def bought(item: str, at: float, **fields: object) -> RankingRequest:
    return request("bob", [item], event_time=at, judged=[judged(item, 0, 1)], knowledge_version=0, **fields)


def nobody(**fields: object) -> RankingRequest:
    return request("new", [], count=0, knowledge_version=0, event_time=0.0, **fields)


def ids(rec: Recommendation) -> list[str]:
    return [item.item_id for item in rec.items]


def test_a_user_without_history_gets_what_is_popular_and_the_first_event_changes_it(rank) -> None:
    before = rank(nobody())
    assert (before.source, before.fallback, before.epsilon > 0, before.kl) == ("popular", "no_history", True, 0)
    assert ids(before)[:2] == ["i9", "i8"]  # as at the end of the data of the fit
    for _ in range(20):
        rank(bought("i3", 10 * DAY))
    now = rank(nobody())
    assert ids(now)[:3] == ["i3", "i9", "i8"]
    assert len(now.items) == 5  # the rest in the order of the reference
    scores = [item.score for item in now.items]
    assert scores == sorted(scores, reverse=True)
    first = rank(request("new", ["i3"], count=1, knowledge_version=0))
    assert (first.source, ids(first) != ids(now)) == ("reference", True)
    assert rank(request("odd", ["who knows"], count=1, knowledge_version=0)).source == "popular"


def test_popularity_halves_with_time_and_returns_take_it_back(rank) -> None:
    for _ in range(8):
        rank(bought("i3", 10 * DAY))
    rank(bought("i4", 13 * DAY + 1, weights={"i4": 1.5}))  # eight events are worth one after three days
    assert ids(rank(nobody()))[:2] == ["i4", "i3"]
    rank(bought("i5", 13 * DAY, weights={"i4": -1.5}))
    assert "i4" not in ids(rank(nobody()))[:3]


def test_nothing_withheld_or_against_is_popular(rank, ranker: Ranker) -> None:
    ranker.take([Entry("i9", 1, available=False)])
    assert ids(rank(nobody(seen=["i8"])))[0] not in {"i8", "i9"}
    assert not {"i8", "i9"} & set(ids(rank(nobody(seen=["i8"]))))


def test_what_is_popular_by_label(rank, ranker: Ranker) -> None:
    ranker.take([Entry(item, 1, labels=("shoes",)) for item in ("i1", "i8")])
    rec = rank(nobody(allow=["shoes"]))
    assert (rec.source, ids(rec), rec.rules) == ("popular", ["i8", "i1"], ["allow=shoes"])


def test_it_is_bounded_and_moves_on(tmp_path: Path) -> None:
    popular = PopularNow(DAY)
    for n in range(3 * KEPT):
        popular.add([(f"x{n}", 1.0)], n * DAY / KEPT)
    assert len(popular) <= 2 * KEPT
    popular.add([("i1", 1.0)], (5 + 2 * MOVE_AFTER) * DAY)
    assert len(popular) == 1
    popular.add([("i2", 4.0)], (4 + 2 * MOVE_AFTER) * DAY)  # a day late
    np.testing.assert_allclose(popular.shares(ROWS, 30)[:4], [0, 1 / 3, 2 / 3, 0], rtol=1e-6)
    popular.add([("i1", 1.0)], -1e12)
    np.testing.assert_allclose(popular.shares(ROWS, 30)[1], 1 / 3, rtol=1e-6)


def test_it_survives_a_restart_but_not_a_damaged_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, ticks = tmp_path / "ranking" / "popular.msgpack", [0.0]
    popular = PopularNow(DAY, {"i2": 1.0})
    kept = KeptPopular(popular, path, lambda: ticks[0])
    popular.add([("i1", 3.0)], 5 * DAY)
    kept.save()
    assert not path.exists()
    ticks[0] = SAVE_EVERY_S
    kept.save()
    again = PopularNow(DAY, {"i7": 9.0})
    KeptPopular(again, path)
    np.testing.assert_allclose(again.shares(ROWS, 30)[:3], [0, 0.75, 0.25])
    path.write_bytes(b"\xc1 damaged")
    other = PopularNow(DAY, {"i7": 9.0})
    KeptPopular(other, path)
    assert other.shares(ROWS, 30)[7] == 1.0
    assert "what was popular is lost" in caplog.text
    (tmp_path / "full").write_text("a file where a folder should be")
    KeptPopular(other, tmp_path / "full" / "popular.msgpack").save(now=True)
    assert "what is popular is not saved" in caplog.text


def test_the_end_of_the_data_counts_most(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,event_time\n" + "".join(f"a,old,{1_700_000_000 + n}\n" for n in range(8))
                    + f"b,new,{1_700_000_000 + 4 * int(DAY)}\n")
    dataset = load_dataset(path)
    counts = popular_items(dataset, dataset.events, DAY)
    assert counts == pytest.approx({"new": 1.0, "old": 0.5}, abs=1e-3)
