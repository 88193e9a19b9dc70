"""EASE: planted associations are found, old items count less, and weights survive a store."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.sequences import Sequences
from models.evidence import ease
from models.evidence.ease import HALF_LIFE, SIZE, STEP, ClosedForm, Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.scorers.fusion import Evidence, FusedScorer
from workers.store import point

torch.set_num_threads(1)
N = 30


def planted(users=400, seed=0):
    """Users like one of three groups of ten items; no user has item 29."""
    rng = np.random.default_rng(seed)
    items = [rng.permutation(10)[:5] + 10 * (user % 3) for user in range(users)]
    items = [np.where(some == 29, 28, some) for some in items]
    lengths = [len(some) for some in items]
    return Sequences(np.concatenate(items), np.arange(sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]))


def dense(found):
    """Return evidence as (B, N)."""
    return torch.zeros(len(found.items), N).scatter_add(1, found.items.clamp(min=0), found.weights)


AFFINITY = Ease.fit(planted(), N)
GROUPS = np.eye(6, dtype=np.float32)[np.arange(N) // 5]
KNOWN = ItemKnowledge(
    [f"thing {item % 4}" for item in range(N)], [f"group {'abcdef'[item // 5]}" for item in range(N)],
    (GROUPS + 0.2) / np.linalg.norm(GROUPS + 0.2, axis=1, keepdims=True))
KEPT = ClosedForm(planted(), N, KNOWN, keep=True)


def test_evidence_favours_items_related_to_the_history():
    found = AFFINITY.evidence(np.array([[0, 1, 2], [10, 11, -1], [29, -1, -1], [-1, -1, -1]]))
    dense = torch.zeros(4, N).scatter_add(1, found.items.clamp(min=0), found.weights)
    assert set(dense[0].topk(7).indices.tolist()) == set(range(3, 10))
    assert (dense[0, :3] == 0).all()
    assert set(dense[1].topk(8).indices.tolist()) == set(range(12, 20))
    assert (dense[2:] == 0).all()  # no evidence from an item without data or an empty history
    assert (found.items[2:] == -1).all()


def test_closed_form_is_the_minimum():
    """No other zero-diagonal matrix has a lower ‖X − XB‖² + λ‖B‖² (the gradient is zero off the diagonal)."""
    sequences = planted()
    x = torch.zeros(400, N, dtype=torch.float64)
    x[torch.from_numpy(np.repeat(np.arange(400), 5)), torch.from_numpy(sequences.item)] = 1
    weights = torch.zeros(N, N, dtype=torch.float64)
    weights.scatter_(1, AFFINITY.neighbours, AFFINITY.weights.double())
    counts = x.sum(0)
    ridge = 2 * counts[counts > 0].mean()
    gradient = x.T @ (x @ weights - x) + ridge * weights
    gradient.fill_diagonal_(0)
    assert gradient[counts > 0][:, counts > 0].abs().max() < 0.1  # 60 at B = 0; the rest is half precision


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-1, N - 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_padding_and_other_histories_have_no_effect(histories):
    padded = np.array([[*row, -1, -1] for row in histories])
    together = AFFINITY.evidence(padded)
    for row, history in enumerate(histories):
        alone = AFFINITY.evidence(np.array([[item for item in history if item >= 0] or [-1]]))
        assert torch.equal(alone.items[0].sort().values, together.items[row].sort().values)
        assert not set(history) & set(together.items[row].tolist()) - {-1}


def test_older_items_weigh_less():
    last, first = AFFINITY.evidence(np.array([[10, 0]])), AFFINITY.evidence(np.array([[0, 10]]))
    mass = [float(found.weights[found.items < 10].clamp(min=0).sum()) for found in (last, first)]
    assert abs(mass[1] / mass[0] - 2 ** (-1 / HALF_LIFE)) < 0.02


def test_words_give_evidence_for_items_without_users():
    texts = [f"{'red' if item % 10 == 9 else 'blue'} {'abc'[item // 10]}" for item in range(N)]
    texts[5] = "red only"
    found = Ease.fit(planted(), N, ItemKnowledge(texts), Parts(words=0.6)).evidence(np.array([[9, -1], [29, -1]]))
    dense = torch.zeros(2, N).scatter_add(1, found.items.clamp(min=0), found.weights)
    assert dense[0, 29] > 0.01  # another red item, without users
    assert dense[1, 20:29].min() > dense[1, :5].max()  # the new item is closest to its group
    assert set(dense[0].topk(8).indices.tolist()) <= {*range(9), 19, 29}  # user behaviour still counts most


def test_texts_with_weight_zero_have_no_effect():
    other = Ease.fit(planted(), N, KNOWN, Parts())
    assert torch.equal(other.neighbours, AFFINITY.neighbours)
    assert torch.equal(other.weights, AFFINITY.weights)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["words", "encoder", "written"]), st.floats(0.1, 1.5), st.randoms(use_true_random=False))
def test_the_order_of_items_has_no_effect(part, weight, random):
    order = np.array(random.sample(range(N), N))
    place = np.argsort(order)
    sequences = planted()
    moved = Sequences(place[sequences.item], sequences.index, sequences.offsets)
    histories = np.array([[0, 1, 12], [29, 5, -1]])
    found = Ease.fit(sequences, N, KNOWN, Parts(**{part: weight})).evidence(histories)
    there = Ease.fit(moved, N, KNOWN.at(order.tolist()), Parts(**{part: weight})).evidence(
        np.where(histories >= 0, place[histories], -1))
    torch.testing.assert_close(dense(found), dense(there)[:, torch.from_numpy(place)], atol=3 * STEP, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1.5), min_size=3, max_size=3))
def test_kept_similarities_give_the_same_weights(weights):
    parts = Parts(*weights)
    kept = KEPT.solve(parts).evidence(np.array([[0, 1, 12], [29, 5, -1]]))
    alone = Ease.fit(planted(), N, KNOWN, parts).evidence(np.array([[0, 1, 12], [29, 5, -1]]))
    torch.testing.assert_close(dense(kept), dense(alone), atol=3 * STEP, rtol=0)


def test_encodings_and_written_words_reach_items_without_users():
    for parts in (Parts(encoder=0.6), Parts(written=0.6)):
        found = dense(Ease.fit(planted(), N, KNOWN, parts).evidence(np.array([[29, -1]])))[0]
        assert found[25:29].min() > found[:20].max()
    assert not dense(AFFINITY.evidence(np.array([[29, -1]]))).any()


def test_a_part_without_knowledge_is_refused():
    for parts in (Parts(encoder=0.3), Parts(written=0.3)):
        with pytest.raises(ValueError, match="no such knowledge"):
            Ease.fit(planted(), N, ItemKnowledge(["red"] * N), parts)
    with pytest.raises(ValueError, match="2 rows of knowledge for 3 items"):
        ItemKnowledge(["a", "b", "c"], ["", ""])


def test_weights_survive_a_store():
    assert point.STEP == STEP
    weights = AFFINITY.evidence(np.array([[0, 1, 12]])).weights[0]
    assert torch.equal((weights / STEP).round() * STEP, weights)


def test_evidence_raises_its_items_and_decays():
    torch.manual_seed(0)
    fused = FusedScorer(torch.randn(N, 4), None, N, 8, 1, 2, 6, 0.0)
    logits, none = torch.randn(2, N), torch.zeros(2, 0)
    evidence = Evidence(torch.tensor([[3, -1], [4, 5]]), torch.tensor([[0.5, 0.9], [0.25, -0.25]]))
    age = torch.tensor([0, 10])
    reference = torch.randn(2, N)
    assert torch.equal(fused.weigh(logits, reference, evidence, age), logits)  # not calibrated: no effect
    fused.evidence_gain.fill_(4.0)
    fused.evidence_half_life.fill_(10.0)
    expected = logits.clone()
    expected[0, 3] += 2.0
    expected[1, 4] += 0.5
    expected[1, 5] -= 0.5
    torch.testing.assert_close(fused.weigh(logits, reference, evidence, age), expected)
    fused.temperature.fill_(0.5)
    torch.testing.assert_close(fused.weigh(logits, reference, Evidence(none.long(), none), age), logits / 2)
    fused.reference_share.fill_(0.25)
    joined = fused.weigh(logits, reference, Evidence(none.long(), none), age)
    torch.testing.assert_close(joined, (0.75 * logits + 0.25 * reference) / 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.sampled_from([40, 300, 2_000]))
def test_large_catalogues_have_the_same_evidence(seed, users, length, n):
    rng = np.random.default_rng(seed)
    places = torch.from_numpy(rng.integers(0, n, (users, length * 20)))
    spread = torch.from_numpy(rng.choice([0.0, 0.5, -0.25, 0.125, 2.0], places.shape).astype(np.float32))
    own = torch.from_numpy(rng.integers(0, n + 1, (users, length)))
    found = []
    for sums in (ease._dense_sums, ease._sparse_sums):
        best, total = sums(places, spread, own, n)
        found.append([sorted(((abs(value), item) for item, value in zip(items, values, strict=True) if value),
                             reverse=True) for items, values in zip(best.tolist(), total.tolist(), strict=True)])
    for one, other in zip(*found, strict=True):
        assert len({item for _, item in other}) == len(other)  # no item twice
        if len(one) < SIZE:
            assert one == other
        else:
            assert [size for size, _ in one] == [size for size, _ in other]  # equal sums at the cut may change places
