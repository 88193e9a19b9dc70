"""The trust region: how far knowledge may move what behaviour alone would recommend.

For each user the best for the fused model's belief, max_p E_fused[log p], subject to log p(i) ≥ log p_ref(i) − ℓ for
every item i but a set S. It is LWGR's margin constraint, max{0, s_ref − s_θ − δ} = 0, not on average and in training,
but for each user and when serving. With multipliers for the bounds and μ for Σp = 1 the conditions of optimality give

    p(i) = max(e^−ℓ p_ref(i), p_fused(i) / μ) outside S,   p(i) = p_fused(i) / μ in S,   μ ≥ 1.

Σp falls with μ, so μ is unique: found by Newton's method on 1/μ, in which Σp is convex and piecewise linear.

S are the items that p_fused believes in least against p_ref, up to a probability h that the next event is one of them,
as the mean of both models sees it: giving those up frees most for the probability of doing harm.

The radius ε orders these bounds: up to δ it is ℓ, and no event can lose more than ε nats; beyond, ℓ stays δ and h is
ε − δ, the chance of harm. ε = 0 is the reference, ε ≥ 1 + δ the fused model. Other shapes of the bound, the ball in
KL(p ‖ p_ref) among them, have less of the gain for the same harm (`python -m benchmarks.bounds`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.dataset import FloatArray

DELTA = 0.1  # δ, nats: losing less than this to the reference is no harm (LWGR's margin)
ROUNDING = 1e-4  # nats
MAX_STEPS = 100  # 3 to 8 are needed: a step passes at least one of the items that p_fused raises
HALVINGS = 30  # of the range of log p_ref − log p_fused, in which S begins


def harmed(loss: FloatArray) -> np.ndarray:
    """Return (m,) bool: whether log-likelihoods fell behind the reference's by more than δ, given by how much (m,)."""
    return np.asarray(loss > DELTA + ROUNDING)


def trust_region(ref_logp: Tensor, fused_logp: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best distribution within a radius of the reference, for a batch of users.

    Args:
        ref_logp: (B, n) log p_ref; −inf masks an item. A row with every item masked comes back as it is.
        fused_logp: (B, n) log p_fused, finite where not masked; a constant per row changes nothing.
        epsilon: (B,) ≥ 0.

    Returns:
        log p (B, n), 1/μ (B,) in [0, 1] and KL(p ‖ p_ref) (B,) in nats, float64. 1/μ is 1 where p_fused itself keeps
        the bound, and 0 where ε is 0 and log p is `ref_logp` itself. Masked items stay at −inf.
    """
    radius = epsilon.double()
    return bounded(ref_logp, fused_logp, radius.clamp(max=DELTA), (radius - DELTA).clamp(min=0.0))


def bounded(ref_logp: Tensor, fused_logp: Tensor, loss: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `trust_region`'s results for ℓ and h given apart.

    Args:
        loss: (B,) ℓ ≥ 0, nats.
        chance: (B,) h ≥ 0.
    """
    given = ref_logp.double()
    masked = given == -torch.inf
    still = ((loss == 0) & (chance == 0)) | masked.all(-1)
    ref = given.masked_fill(masked.all(-1, keepdim=True), 0.0).log_softmax(-1)
    fused = fused_logp.double().masked_fill(masked, -torch.inf)
    fused = fused.masked_fill(still[:, None], 0.0).log_softmax(-1)  # a row of −inf has no softmax; it is not used
    floor = (ref - loss.double()[:, None]).exp()
    prob = fused.exp()
    floor = floor.masked_fill(_given_up(ref, fused, chance.double()), 0.0)
    share = torch.ones_like(ref[:, 0])  # 1/μ
    for _ in range(MAX_STEPS):
        raised = prob * share[:, None] > floor
        mass = (prob * raised).sum(-1)
        next_ = (1 - (floor * ~raised).sum(-1)) / mass
        next_ = torch.minimum(torch.where(mass > 0, next_, 0.0).clamp(min=0.0), share)
        done = bool((next_ >= share * (1 - 1e-13)).all())
        share = next_
        if done:
            break
    share = torch.where(share > 1 - 1e-12, 1.0, share)  # Σp = 1 up to rounding
    found = torch.maximum(floor, prob * share[:, None])
    found = (found / found.sum(-1, keepdim=True)).log()
    kl = torch.where(masked, 0.0, found.exp() * (found - ref)).sum(-1).clamp(min=0.0)
    share, kl = torch.where(still, 0.0, share), torch.where(still, 0.0, kl)
    return torch.where(still[:, None], given, found), share, kl


def _given_up(ref: Tensor, fused: Tensor, chance: Tensor) -> Tensor:
    """Return S (B, n) bool: items of the largest log p_ref − log p_fused, of `chance` (B,) under the mean of both."""
    none = ref == -torch.inf
    given_up = (chance >= 1)[:, None] & ~none
    rows = torch.nonzero((chance > 1e-6) & (chance < 1)).squeeze(-1)  # below: a radius of δ in single precision
    if not len(rows):
        return given_up
    doubt = torch.where(none[rows], -torch.inf, ref[rows] - fused[rows])
    belief = (ref[rows].exp() + fused[rows].exp()) / 2
    low = torch.where(none[rows], torch.inf, doubt).amin(-1, keepdim=True) - 1.0
    high = doubt.amax(-1, keepdim=True)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = torch.where(doubt > middle, belief, 0.0).sum(-1, keepdim=True) <= chance[rows, None]
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    given_up[rows] = doubt > high
    return given_up
