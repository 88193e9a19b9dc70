"""Rules of a shop: filters and factors before the trust region, limits and pins after it, each named where it acts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.trust.lists import lists
from models.trust.region import trust_region
from schemas.messages import RankingRequest, Recommendation
from schemas.settings import RankingSettings, load
from tests.workers.fitted import DIM, ITEMS, ranking_model
from tests.workers.roles.ranking.test_worker import point, request, split
from workers.catalogue.view import Catalogue, Entry
from workers.roles.ranking.labels import Labels, labels_of
from workers.roles.ranking.ranker import Ranker
from workers.roles.ranking.rules import NO_FILTERS, ListRules
from workers.roles.ranking.worker import RankingProcessor
from workers.store.cache import CachedReader
from workers.store.embedded.engine import EdgeStore

N = len(ITEMS)
# Item 0, 3, 6, … of brand a, 1, 4, … of b, 2, 5, … of c; every fifth is on sale.
ENTRIES = [Entry(item, 1, labels=(f"brand:{'abc'[n % 3]}", *(["sale"] if n % 5 == 0 else []))) for n, item in
           enumerate(ITEMS)]


@pytest.fixture
def rank(tmp_path: Path):
    """A function of rules, requests' fields and whether there is knowledge, to the recommendation."""
    store = EdgeStore(tmp_path / "store", DIM)
    store.ensure()
    store.upsert([point("ann")])
    ranker = Ranker(ranking_model(), ITEMS, "m1", epsilon=0.1)
    ranker.take(ENTRIES)

    def one(known: bool = True, asked: RankingRequest | None = None, **rules: object) -> Recommendation:
        processor = RankingProcessor(ranker, CachedReader(store), RankingSettings(top=5, **rules))  # type: ignore[arg-type]
        return split(processor([asked or request(knowledge_version=int(known))]))[0]["ann"]

    yield one
    store.close()


def ids(rec: Recommendation) -> list[str]:
    return [item.item_id for item in rec.items]


def labels(item: str) -> tuple[str, ...]:
    return ENTRIES[int(item[1:])].labels


def test_without_rules_nothing_is_named(rank) -> None:
    assert rank().rules == []
    assert rank(most={"brand": 5}).rules == rank(deny="unheard").rules == []
    assert ids(rank(most={"brand": 5})) == ids(rank())


@pytest.mark.parametrize("known", [True, False])
def test_denied_and_not_allowed_items_are_in_no_list(rank, known: bool) -> None:
    plain = rank(known)
    first = labels(plain.items[0].item_id)[0]
    rec = rank(known, deny=first)
    assert (rec.source, rec.fallback) == (plain.source, plain.fallback)
    assert rec.rules == [f"deny={first}"]
    assert len(rec.items) == 5
    assert not any(first in labels(item) for item in (*ids(rec), *rec.reference))
    rec = rank(known, allow=f"{first}, sale")
    assert all({first, "sale"} & set(labels(item)) for item in (*ids(rec), *rec.reference))
    assert rec.rules == [f"allow={first}|sale"]


def test_a_request_narrows_what_the_shop_allows(rank) -> None:
    rec = rank(asked=request(allow=["sale"], deny=["brand:b"]), allow="brand:a,brand:b")
    assert all("sale" in labels(item) and "brand:a" in labels(item) for item in ids(rec))
    nothing = rank(asked=request(allow=["unheard of"]))
    assert (nothing.items, nothing.reference) == ([], [])


def test_at_most_so_many_of_an_attribute(rank) -> None:
    rec = rank(most={"brand": 2})
    brands = [labels(item)[0] for item in ids(rec)]
    assert max(map(brands.count, brands)) <= 2
    assert len(rec.items) == 5
    scores = [item.score for item in rec.items]
    assert scores == sorted(scores, reverse=True)
    if ids(rec) != ids(rank()):
        assert rec.rules == ["most=brand"]
    short = rank(most={"brand": 1})
    assert (len(short.items), short.rules) == (3, ["most=brand"])  # three brands, so three items
    assert len(rank(most={"*": 1}).items) == 3


def test_pins_come_first_unless_the_user_may_not_have_them(rank) -> None:
    last = [item for item in ITEMS[5:] if item not in ids(rank())][:2]
    rec = rank(pin=f"{last[0]},{last[1]},i1,gone", deny=labels(last[1])[0])  # i1 is in the history
    assert ids(rec)[0] == last[0] or labels(last[0])[0] == labels(last[1])[0]
    assert not {"i1", last[1]} & set(ids(rec))
    rec = rank(pin=",".join(last))
    assert ids(rec)[:2] == last
    assert rec.rules == [f"pin={item}" for item in last]
    assert ids(rec)[2:] == ids(rank())[:3]
    top = ids(rank())[0]
    assert rank(pin=top).rules == []  # it changes nothing


def test_a_factor_moves_items_of_a_label_or_one_item(rank) -> None:
    rec = rank(boost={"sale": 1e4})
    assert all("sale" in labels(item) for item in ids(rec)[:3])
    assert rec.rules == ["boost=sale"]
    top, low = ids(rank())[0], next(item for item in ITEMS[5:] if item not in ids(rank()))
    assert ids(rank(boost={low: 1e6}))[0] == low
    rec = rank(boost={top: 1e-6})
    assert (top not in ids(rec), rec.rules) == (True, [f"boost={top}"])


@given(st.integers(0, 10_000), st.floats(0.0, 0.1), st.booleans(), st.sampled_from([{}, {"sale": 3.0, "i7": 0.2}]))
@settings(max_examples=40, deadline=None)
def test_the_trust_region_holds_on_what_the_rules_leave(
    seed: int, epsilon: float, masked: bool, boost: dict[str, float],
) -> None:
    """No item that is left loses more than ε against the reference on these items; the others are in no list."""
    generator = torch.Generator().manual_seed(seed)
    ref, fused = (torch.randn(3, N, generator=generator).mul(2).log_softmax(-1) for _ in range(2))
    rules = ListRules(RankingSettings(deny="brand:b" if masked else "", boost=boost, most={"brand": 2}, pin="i8"))
    asked_for = [request(), request(allow=["sale"]), request(deny=["sale"])]
    catalogue = Catalogue(ITEMS)
    catalogue.apply(ENTRIES)
    assert rules.follow(catalogue, asked_for)
    filters = rules.filters([rules.asked(one) for one in asked_for], N)
    left_ref, left_fused = filters.apply(ref), filters.apply(fused)
    torch.testing.assert_close(left_ref.logsumexp(-1), torch.zeros(3))
    radii = torch.full((3,), epsilon, dtype=torch.float64)
    logp, _, _ = trust_region(left_ref, left_fused, radii)
    allowed = left_ref > -torch.inf
    assert bool(((logp > -torch.inf) == allowed).all())
    assert float((left_ref - logp)[allowed].max()) <= epsilon + 1e-5
    found = lists(left_ref, left_fused, radii, N)
    pins = rules.pins(N)
    for row, one in enumerate(rules.arrange(found.items, found.logp, left_ref[:, pins], 10, pins)):
        assert all(allowed[row, item] for item in one.rows)  # limits and pins let nothing in
        assert len(set(one.rows)) == len(one.rows)
        for item, score in one.scored():
            assert item in pins or score == pytest.approx(float(logp[row, item]), abs=1e-5)


def test_labels_follow_the_catalogue_and_come_from_attributes_where_there_are_none() -> None:
    assert labels_of(Entry("i", 0, "Toy Story", "Toy Story. Animation, Comedy. A long text, too")) == (
        "Animation", "Comedy")
    assert labels_of(Entry("i", 0, "Cream", "Cream. brand: X, kind: Skin Care")) == ("brand: X", "kind: Skin Care")
    assert labels_of(Entry("i", 1, "Cream", "Cream. brand: X", labels=("new",))) == ("new",)
    assert labels_of(Entry("i", 0, "Cream", "Cream")) == labels_of(Entry("i", 0, "", "")) == ()
    catalogue, found = Catalogue(["a", "b"], ["A. red", "B. blue"], ["A", "B"]), Labels()
    found.follow(catalogue)
    assert found.mask(["red", "none"], 2).tolist() == [True, False]
    catalogue.apply([Entry("a", 1, "A", "A", labels=("green",)), Entry("c", 2, "C", "C", labels=("red",))])
    found.follow(catalogue)
    assert found.mask(["red"], 3).tolist() == [False, False, True]
    assert found.mask(["red"], 2).tolist() == [False, False]  # c has no row in the model
    assert found.mask(["green", "blue"], 3).tolist() == [True, True, False]
    found.follow(Catalogue(["z"], ["Z. red"], ["Z"]))
    assert found.mask(["red"], 1).tolist() == [True]


def test_rules_that_name_what_is_not_there_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    rules = ListRules(RankingSettings(
        allow="brand:a,brand:q", deny="adlut", boost={"sale": 2.0, "i1": 2.0, "slae": 2.0}, pin="i2,i99",
        most={"brand": 2, "kind": 1}))
    catalogue = Catalogue(ITEMS)
    catalogue.apply(ENTRIES)
    for version in (2, 3):
        rules.follow(catalogue, [request()])
        catalogue.apply([Entry("i3", version, labels=("brand:c",))])
    assert [record.message for record in caplog.records] == [
        "FRESHET_RANKING_ALLOW: no item has the label 'brand:q' so far",
        "FRESHET_RANKING_DENY: no item has the label 'adlut' so far",
        "FRESHET_RANKING_BOOST: 'slae' is neither a label nor an item so far",
        "FRESHET_RANKING_MOST: no item has a label that begins with 'kind:' so far",
        "FRESHET_RANKING_PIN: there is no item 'i99' so far"]


def test_rules_cost_nothing_where_there_are_none() -> None:
    rules = ListRules(RankingSettings())
    assert not rules.follow(Catalogue(ITEMS), [request()])
    assert rules.filters([], N) is NO_FILTERS
    scores = torch.randn(2, N)
    assert NO_FILTERS.apply(scores) is scores


def test_rules_are_settings() -> None:
    found = load({"FRESHET_RANKING_DENY": "adult, out of print", "FRESHET_RANKING_MOST": "brand=2,*=3",
                  "FRESHET_RANKING_BOOST": "sale=1.5", "FRESHET_RANKING_PIN": "i1"}).ranking
    assert found.labels_denied == ("adult", "out of print")
    assert (found.most, found.boost, found.pinned) == ({"brand": 2, "*": 3}, {"sale": 1.5}, ("i1",))
