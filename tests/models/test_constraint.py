import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.constraint import trust_region

torch.set_num_threads(1)

problems = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 60), st.floats(0.01, 30.0), st.floats(0.01, 8.0))


def problem(seed, B, n, scale, spread, masked=0.2):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, spread, (B, n)))
    mask = torch.from_numpy(rng.random((B, n)) < masked)
    mask[:, 0] = False
    ref = logits.masked_fill(mask, -torch.inf).log_softmax(-1)
    delta = torch.from_numpy(rng.normal(0, scale, (B, n)))
    return ref, delta, mask


def divergence(logp, ref):
    term = logp.exp() * (logp - ref)
    return term.masked_fill(ref == -torch.inf, 0).sum(-1)


@settings(max_examples=150, deadline=None)
@given(problems, st.floats(1e-8, 5.0))
def test_lambda_solves_the_constraint_or_is_one(shape, epsilon):
    ref, delta, mask = problem(*shape)
    logp, beta, kl = trust_region(ref, delta, torch.full((len(ref),), epsilon))
    assert logp.dtype == beta.dtype == kl.dtype == torch.float64
    assert ((beta >= 0) & (beta <= 1)).all()
    true = divergence(logp, ref)
    torch.testing.assert_close(true, kl, rtol=0, atol=1e-7)
    solved = (true - epsilon).abs() <= 1e-6
    assert (solved | ((beta == 1) & (true <= epsilon + 1e-6))).all()
    torch.testing.assert_close(logp.logsumexp(-1), torch.zeros(len(ref), dtype=torch.float64), rtol=0, atol=1e-9)
    assert (logp[mask] == -torch.inf).all()
    assert torch.isfinite(logp[~mask]).all()
    whole = (ref + delta).log_softmax(-1)
    torch.testing.assert_close(logp[beta == 1], whole[beta == 1])


@settings(max_examples=50, deadline=None)
@given(problems)
def test_no_radius_is_the_reference_exactly(shape):
    ref, delta, _ = problem(*shape)
    logp, beta, kl = trust_region(ref, delta, torch.zeros(len(ref)))
    assert torch.equal(logp, ref)
    assert (beta == 0).all()
    assert (kl == 0).all()


@settings(max_examples=50, deadline=None)
@given(problems, st.floats(1e-4, 2.0), st.floats(1.0, 4.0))
def test_more_trust_never_brings_less_kl(shape, epsilon, factor):
    ref, delta, _ = problem(*shape)
    small = trust_region(ref, delta, torch.full((len(ref),), epsilon))
    large = trust_region(ref, delta, torch.full((len(ref),), epsilon * factor))
    assert (large[2] >= small[2] - 1e-6).all()
    assert (large[1] >= small[1] - 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(problems, st.floats(1e-4, 2.0), st.floats(-50, 50))
def test_a_constant_added_to_the_scores_changes_nothing(shape, epsilon, shift):
    ref, delta, _ = problem(*shape)
    radius = torch.full((len(ref),), epsilon)
    plain, shifted = trust_region(ref, delta, radius), trust_region(ref - shift, delta + shift, radius)
    torch.testing.assert_close(shifted[0], plain[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(shifted[1], plain[1], rtol=1e-5, atol=1e-7)


def test_rows_are_solved_apart_and_float32_is_taken():
    ref, delta, _ = problem(3, 5, 40, 2.0, 2.0)
    radius = torch.tensor([0.0, 1e-3, 0.05, 0.5, 100.0])
    logp, beta, _ = trust_region(ref.float(), delta.float(), radius)
    assert beta[0] == 0
    assert beta[4] == 1
    for row in range(5):
        alone = trust_region(ref[row : row + 1].float(), delta[row : row + 1].float(), radius[row : row + 1])
        torch.testing.assert_close(alone[0][0], logp[row])


def test_equal_scores_leave_the_reference():
    ref, delta, _ = problem(4, 2, 9, 1.0, 1.0)
    logp, _, kl = trust_region(ref, torch.full_like(delta, 7.0), torch.tensor([0.1, 1.0]))
    torch.testing.assert_close(logp, ref)
    torch.testing.assert_close(kl, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_masked_scores_may_be_anything():
    ref, delta, mask = problem(5, 3, 30, 1.0, 1.0)
    spoiled = delta.masked_fill(mask, torch.nan)
    radius = torch.full((3,), 0.1)
    assert torch.equal(trust_region(ref, spoiled, radius)[0], trust_region(ref, delta, radius)[0])


def test_a_user_who_has_seen_everything_gets_nothing():
    logp, beta, kl = trust_region(torch.full((1, 4), -torch.inf), torch.zeros(1, 4), torch.ones(1))
    assert (logp == -torch.inf).all()
    assert (beta.item(), kl.item()) == (0, 0)
