import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.measuring.harm import DELTA
from models.trust.lists import best, lists
from models.trust.region import trust_region

torch.set_num_threads(1)


def problem(seed, rows, n, scale, spread, masked=0.1):
    """Return two log-distributions in single precision with the same items masked."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, spread, (rows, n)).astype(np.float32))
    mask = torch.from_numpy(rng.random((rows, n)) < masked)
    mask[:, 0] = False
    fused = logits + torch.from_numpy(rng.normal(0, scale, (rows, n)).astype(np.float32))
    return (logits.masked_fill(mask, -torch.inf).log_softmax(-1), fused.masked_fill(mask, -torch.inf).log_softmax(-1))


def check(ref, fused, epsilon, top=10):
    """Compare with the whole distribution: same list up to ties, bound kept on every item of it."""
    found = lists(ref, fused, epsilon, top)
    whole, share, kl = trust_region(ref, fused, epsilon)
    k = min(top, ref.shape[1])
    wanted = whole.topk(k, 1).values
    torch.testing.assert_close(found.logp, wanted, rtol=0, atol=2e-6)
    there = found.logp > -torch.inf
    # the items are those of these probabilities (ties may change places)
    torch.testing.assert_close(whole.gather(1, found.items)[there], found.logp[there], rtol=0, atol=2e-6)
    torch.testing.assert_close(found.share, share, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.kl, kl, rtol=1e-4, atol=2e-6)
    lost = ref.double().gather(1, found.items) - found.logp
    narrow = (epsilon <= DELTA)[:, None] & there
    assert (lost[narrow] <= (epsilon.double()[:, None].expand_as(lost)[narrow] + 1e-6)).all()
    assert all(len(set(row[keep].tolist())) == int(keep.sum())
               for row, keep in zip(found.items, there, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 80), st.floats(0.0, 12.0), st.floats(0.01, 8.0),
       st.lists(st.sampled_from([0.0, 1e-6, 0.01, 0.05, DELTA, 0.3, 1.5]), min_size=6, max_size=6))
def test_the_list_is_that_of_the_whole_distribution(seed, rows, n, scale, spread, radii):
    ref, fused = problem(seed, rows, n, scale, spread)
    check(ref, fused, torch.tensor(radii[:rows], dtype=torch.float32))


@pytest.mark.parametrize("n", [5_121, 45_003, 131_072])
@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
def test_large_catalogues(n, scale):
    ref, fused = problem(n, 3, n, scale, 2.0)
    check(ref, fused, torch.tensor([0.02, DELTA, 0.0]))
    found = lists(ref, fused, torch.tensor([0.02, DELTA, 0.0]), 10)
    assert torch.equal(found.items[2], ref[2].topk(10).indices)


def test_equal_distributions_change_nothing():
    ref, _ = problem(1, 2, 50_000, 0.0, 2.0)
    found = lists(ref, ref.clone(), torch.tensor([0.05, DELTA]), 10)
    torch.testing.assert_close(found.share, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.kl, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(found.items, ref.topk(10, 1).indices)


def test_users_with_few_items_or_none_left():
    ref = torch.full((3, 5_000), -torch.inf)
    ref[0, [3, 4_000]] = torch.tensor([0.0, -120.0])  # e^−120 is 0 in single precision
    ref[1, 7] = 0.0
    fused = ref.clone()
    found = lists(ref, fused, torch.tensor([0.05, 0.0, 0.05]), 4)
    assert found.items[0, :2].tolist() == [3, 4_000]
    assert math.isclose(found.logp[0, 1], -120.0, abs_tol=0.06)
    assert found.logp[0, 2:].tolist() == [-math.inf] * 2
    assert found.items[1, 0] == 7
    assert found.logp[1].tolist() == [0.0] + [-math.inf] * 3
    assert found.logp[2].tolist() == [-math.inf] * 4
    assert lists(ref.log_softmax(-1), ref.log_softmax(-1), torch.full((3,), 0.05), 4).logp[2].tolist() == [
        -math.inf] * 4


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 511, 5_120, 5_121, 9_999]), st.integers(1, 12))
def test_the_best_of_blocks_are_the_best(seed, n, k):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.choice(np.append(rng.normal(size=50), -np.inf), (3, n)).astype(np.float32))
    values, columns = best(scores, k)
    assert torch.equal(values, scores.topk(min(k, n), 1).values)
    assert torch.equal(scores.gather(1, columns), values)
    assert all(len(set(row.tolist())) == len(row) for row in columns)
