import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.measuring.harm import DELTA, harmed
from models.trust.region import trust_region

torch.set_num_threads(1)

problems = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 60), st.floats(0.01, 30.0), st.floats(0.01, 8.0))


def problem(seed, B, n, scale, spread, masked=0.2):
    """Return two log-distributions with the same items masked, and the mask."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, spread, (B, n)))
    mask = torch.from_numpy(rng.random((B, n)) < masked)
    mask[:, 0] = False
    ref = logits.masked_fill(mask, -torch.inf).log_softmax(-1)
    fused = (logits + torch.from_numpy(rng.normal(0, scale, (B, n)))).masked_fill(mask, -torch.inf).log_softmax(-1)
    return ref, fused, mask


def expected(under, logp):
    """Return E_under[log p] of each row."""
    return torch.where(under == -torch.inf, 0.0, under.exp() * logp.masked_fill(under == -torch.inf, 0.0)).sum(-1)


@settings(max_examples=150, deadline=None)
@given(problems, st.floats(1e-8, DELTA))
def test_no_item_loses_more_than_the_radius(shape, epsilon):
    ref, fused, mask = problem(*shape)
    logp, share, kl = trust_region(ref, fused, torch.full((len(ref),), epsilon, dtype=torch.float64))
    assert logp.dtype == share.dtype == kl.dtype == torch.float64
    assert ((share > 0) & (share <= 1)).all()
    torch.testing.assert_close(logp.logsumexp(-1), torch.zeros(len(ref), dtype=torch.float64), rtol=0, atol=1e-9)
    assert (logp[mask] == -torch.inf).all()
    assert torch.isfinite(logp[~mask]).all()
    assert ((ref - logp)[~mask] <= epsilon + 1e-9).all()
    torch.testing.assert_close(kl, expected(logp, logp) - expected(logp, ref), rtol=0, atol=1e-9)
    # items above their floor have the fused probability divided by μ
    above = (~mask) & (ref - logp < epsilon - 1e-6)
    rows = torch.nonzero(above)[:, 0]
    torch.testing.assert_close(logp[above], fused[above] + share[rows].log(), rtol=0, atol=1e-6)
    torch.testing.assert_close(logp[share == 1].exp(), fused[share == 1].exp(), atol=1e-11, rtol=0)


@settings(max_examples=100, deadline=None)
@given(problems, st.floats(1e-4, DELTA), st.integers(0, 10**6))
def test_no_other_distribution_within_the_bound_is_better(shape, epsilon, seed):
    ref, fused, mask = problem(*shape)
    logp, _, _ = trust_region(ref, fused, torch.full((len(ref),), epsilon, dtype=torch.float64))
    rng = np.random.default_rng(seed)
    for spread in (0.1, 1.0, 5.0):
        guess = (fused + torch.from_numpy(rng.normal(0, spread, fused.shape))).masked_fill(mask, -torch.inf)
        floor = np.exp(-epsilon)
        other = (floor * ref.exp() + (1 - floor) * guess.softmax(-1)).log()
        assert (expected(fused, logp) >= expected(fused, other) - 1e-9).all()
    assert (expected(fused, logp) >= expected(fused, ref) - 1e-9).all()


@settings(max_examples=150, deadline=None)
@given(problems, st.floats(1e-3, 1.5))
def test_beyond_delta_the_radius_is_the_chance_of_harm(shape, chance):
    ref, fused, mask = problem(*shape)
    logp, share, _ = trust_region(ref, fused, torch.full((len(ref),), DELTA + chance, dtype=torch.float64))
    torch.testing.assert_close(logp.logsumexp(-1), torch.zeros(len(ref), dtype=torch.float64), rtol=0, atol=1e-9)
    assert (logp[mask] == -torch.inf).all()
    lost = (ref - logp > DELTA + 1e-9) & ~mask
    belief = (ref.exp() + fused.exp()) / 2
    if chance < 1:
        assert (torch.where(lost, belief, 0.0).sum(-1) <= chance + 1e-9).all()
    else:
        torch.testing.assert_close(logp.exp(), fused.exp(), atol=1e-11, rtol=0)
    # items without a bound have the largest doubt: no item with a bound has a larger one
    doubt = (ref - fused).masked_fill(mask, -torch.inf)
    kept = torch.where(lost | mask, -torch.inf, doubt).amax(-1)
    least = torch.where(lost, doubt, torch.inf).amin(-1)
    assert (least >= torch.minimum(kept, least) - 1e-9).all()
    bound = trust_region(ref, fused, torch.full((len(ref),), DELTA, dtype=torch.float64))
    assert (share >= bound[1] - 1e-9).all()
    assert (expected(fused, logp) >= expected(fused, bound[0]) - 1e-9).all()


@settings(max_examples=150, deadline=None)
@given(problems, st.floats(1e-3, 0.99))
def test_the_set_without_bound_is_the_largest_allowed(shape, chance):
    ref, fused, mask = problem(*shape)
    logp, _, _ = trust_region(ref, fused, torch.full((len(ref),), DELTA + chance, dtype=torch.float64))
    doubt = (ref - fused).masked_fill(mask, -torch.inf)
    order = doubt.argsort(-1, descending=True)
    together = ((ref.exp() + fused.exp()) / 2).gather(-1, order).cumsum(-1)
    assume(float((together - chance).abs().min()) > 1e-9)  # otherwise rounding decides
    exception = torch.zeros_like(mask).scatter_(-1, order, together <= chance)
    floor = (ref.exp() * np.exp(-DELTA)).masked_fill(exception, 0.0)
    low, high = torch.zeros(len(ref), 1, dtype=torch.float64), torch.ones(len(ref), 1, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        over = torch.maximum(floor, fused.exp() * middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    torch.testing.assert_close(logp.exp(), torch.maximum(floor, fused.exp() * high), rtol=1e-6, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(problems)
def test_radius_zero_gives_exactly_the_reference(shape):
    ref, fused, _ = problem(*shape)
    logp, share, kl = trust_region(ref, fused, torch.zeros(len(ref)))
    assert torch.equal(logp, ref)
    assert (share == 0).all()
    assert (kl == 0).all()


@settings(max_examples=50, deadline=None)
@given(problems, st.floats(1e-4, 2.0), st.floats(1.0, 4.0))
def test_a_larger_radius_never_uses_knowledge_less(shape, epsilon, factor):
    ref, fused, _ = problem(*shape)
    small = trust_region(ref, fused, torch.full((len(ref),), epsilon, dtype=torch.float64))
    large = trust_region(ref, fused, torch.full((len(ref),), epsilon * factor, dtype=torch.float64))
    assert (large[1] >= small[1] - 1e-9).all()
    assert (expected(fused, large[0]) >= expected(fused, small[0]) - 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(problems, st.floats(1e-4, 2.0), st.floats(-50, 50))
def test_a_constant_added_to_the_scores_has_no_effect(shape, epsilon, shift):
    ref, fused, _ = problem(*shape)
    radius = torch.full((len(ref),), epsilon, dtype=torch.float64)
    plain, shifted = trust_region(ref, fused, radius), trust_region(ref - shift, fused + shift, radius)
    for one, other in zip(plain, shifted, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)


def test_rows_are_independent_and_float32_is_accepted():
    ref, fused, _ = problem(3, 5, 40, 2.0, 2.0)
    radius = torch.tensor([0.0, 1e-3, 0.05, 0.5, 100.0])
    logp, share, _ = trust_region(ref.float(), fused.float(), radius)
    assert share[0] == 0
    assert share[4] == 1
    for row in range(5):
        alone = trust_region(ref[row : row + 1].float(), fused[row : row + 1].float(), radius[row : row + 1])
        torch.testing.assert_close(alone[0][0], logp[row])


def test_equal_scores_give_the_reference():
    ref, _, _ = problem(4, 2, 9, 1.0, 1.0)
    logp, _, kl = trust_region(ref, ref + 7.0, torch.tensor([0.1, 1.0]))
    torch.testing.assert_close(logp, ref)
    torch.testing.assert_close(kl, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_masked_scores_may_be_anything():
    ref, fused, mask = problem(5, 3, 30, 1.0, 1.0)
    spoiled = fused.masked_fill(mask, torch.nan)
    radius = torch.full((3,), 0.1)
    assert torch.equal(trust_region(ref, spoiled, radius)[0], trust_region(ref, fused, radius)[0])


def test_a_fully_masked_row_stays_masked():
    none = torch.full((1, 4), -torch.inf)
    logp, share, kl = trust_region(none, none, torch.ones(1))
    assert (logp == -torch.inf).all()
    assert (share.item(), kl.item()) == (0, 0)


def test_within_delta_nobody_is_harmed():
    ref, fused, mask = problem(6, 40, 50, 3.0, 3.0)
    logp, _, _ = trust_region(ref.float(), fused.float(), torch.full((40,), DELTA))
    assert not harmed((ref.float().double() - logp)[~mask].numpy()).any()
    assert harmed((ref - fused)[~mask].numpy()).mean() > 0.2
