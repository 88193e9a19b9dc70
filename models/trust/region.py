"""The trust region: how far knowledge may move the recommendations from behaviour alone.

For each user, maximise E_fused[log p] over p, subject to log p(i) ≥ log p_ref(i) − ℓ for every item i outside a set S.
This is LWGR's margin constraint, max{0, s_ref − s_θ − δ} = 0, enforced for each user at serving time instead of on
average during training. With multipliers for the bounds and μ for Σp = 1, the optimality conditions give

    p(i) = max(e^−ℓ p_ref(i), p_fused(i) / μ) outside S,   p(i) = p_fused(i) / μ in S,   μ ≥ 1.

Σp falls with μ, so μ is unique. It is found by Newton's method on 1/μ, in which Σp is convex and piecewise linear.

S contains the items with the lowest p_fused relative to p_ref, up to a total probability h under the mean of both
models. Dropping their bound frees the most probability for a given chance of harm.

One radius ε controls both bounds. Up to δ it is ℓ, and no event can lose more than ε nats. Beyond δ, ℓ stays δ and h is
ε − δ, the chance of harm. ε = 0 gives the reference, ε ≥ 1 + δ the fused model. Other bounds, such as a ball in
KL(p ‖ p_ref), keep less of the gain for the same harm (`python -m benchmarks.bounds.run`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.measuring.harm import DELTA

AT_ONCE = 200_000  # scores per block: 1.6 MB of float64 per tensor fit in a core's cache
MAX_STEPS = 100  # 3 to 8 are needed: each step passes at least one of the items that p_fused raises
ROUNDING_OF_RADIUS = 1e-6  # a radius of δ in single precision must not open a chance of harm
BINS, ROUNDS = 1024, 3  # of histograms of log p_ref − log p_fused: S begins within 2⁻²⁸ of its range
LEAST = -1e30  # nats; replaces −∞ where 0 · ∞ would give NaN


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log softmax (B, n) over the items that are not −∞; a user who has had every item keeps −∞ for all."""
    return logits.log_softmax(-1).masked_fill_((logits == -torch.inf).all(-1, keepdim=True), -torch.inf)


def trust_region(ref_logp: Tensor, fused_logp: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best distribution within a radius of the reference, for a batch of users.

    Args:
        ref_logp: (B, n) log p_ref; −inf masks an item. A fully masked row is returned unchanged.
        fused_logp: (B, n) log p_fused, finite where not masked; a constant per row has no effect.
        epsilon: (B,) ≥ 0.

    Returns:
        log p (B, n), 1/μ (B,) in [0, 1] and KL(p ‖ p_ref) (B,) in nats, float64. 1/μ is 1 where p_fused satisfies the
        bound, and 0 where ε is 0 and log p equals `ref_logp`. Masked items stay at −inf.
    """
    radius = epsilon.double()
    return bounded(ref_logp, fused_logp, radius.clamp(max=DELTA), (radius - DELTA).clamp(min=0.0))


def over_catalogue(ref: Tensor, fused: Tensor, epsilon: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
    """Return what is served as log-probabilities (B, n) over the whole catalogue, for measurements.

    Serving removes the items a user has had, then applies the region to the others. Here the items removed keep the
    reference's probability, and the others share the rest as they are served; so the log-probability of a repeated item
    is finite, and the others rank as they are served.

    Args:
        ref, fused: (B, n) logits.
        epsilon: (B,) ≥ 0.
        seen: pairs (row, item) to remove.
    """
    whole = ref.log_softmax(-1)
    given = whole.index_put(seen, whole.new_tensor(-torch.inf))
    rest = given.logsumexp(-1, keepdim=True)
    moved = fused.index_put(seen, fused.new_tensor(-torch.inf)).log_softmax(-1)
    logp, _, _ = trust_region(given - rest, moved, epsilon)
    return torch.where(given == -torch.inf, whole, (logp + rest).to(whole.dtype))


def bounded(ref_logp: Tensor, fused_logp: Tensor, loss: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `trust_region` for separate ℓ and h.

    Args:
        loss: (B,) ℓ ≥ 0, nats.
        chance: (B,) h ≥ 0.
    """
    rows = len(ref_logp) if ref_logp.is_cuda else max(1, AT_ONCE // ref_logp.shape[1])
    columns = [column.split(rows) for column in (ref_logp, fused_logp, loss, chance)]
    logp, share, kl = zip(*map(_bounded, *columns), strict=True)
    return torch.cat(logp), torch.cat(share), torch.cat(kl)


def _bounded(ref_logp: Tensor, fused_logp: Tensor, loss: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    given = ref_logp.double()
    masked = given == -torch.inf
    moving = ~(((loss == 0) & (chance == 0)) | masked.all(-1))
    if not moving.all():
        logp, share, kl = given.clone(), torch.zeros_like(given[:, 0]), torch.zeros_like(given[:, 0])
        if moving.any():
            logp[moving], share[moving], kl[moving] = _bounded(
                given[moving], fused_logp[moving], loss[moving], chance[moving])
        return logp, share, kl
    fused = fused_logp.double()
    if masked.any():
        fused = fused.masked_fill(masked, -torch.inf)
    # Products from here on: `where` takes seven times as long, and n is large.
    ref, fused = given.log_softmax(-1), fused.log_softmax(-1)
    bound = loss.double()[:, None]
    floor, prob = (ref - bound).exp_(), fused.exp()
    if (chance > ROUNDING_OF_RADIUS).any():
        belief = (floor * bound.exp()).add_(prob).div_(2)
        doubt = ref.clamp(min=LEAST).sub_(fused.clamp(min=LEAST))  # 0 for a masked item, within the others' range
        floor.mul_(~_unbounded_items(doubt, belief, chance.double()))
    share = torch.ones_like(given[:, 0])  # 1/μ
    scaled, above = torch.empty_like(prob), torch.empty_like(prob)
    for _ in range(MAX_STEPS):
        torch.mul(prob, share[:, None], out=scaled)
        slope = torch.linalg.vecdot(prob, torch.gt(scaled, floor, out=above))
        next_ = share + (1 - torch.maximum(scaled, floor).sum(-1)) / slope
        next_ = torch.minimum(next_.nan_to_num(nan=0.0).clamp(min=0.0), share)  # −∞ or 0/0: no item is above its floor
        done = bool((next_ >= share * (1 - 1e-13)).all())
        share = next_
        if done:
            break
    share = torch.where(share > 1 - 1e-12, 1.0, share)  # Σp = 1 up to rounding
    found = torch.maximum(floor, prob.mul_(share[:, None]))
    found.div_(found.sum(-1, keepdim=True))
    logp = found.log()
    kl = found.mul_(logp.clamp(min=LEAST).sub_(ref.clamp_(min=LEAST))).sum(-1).clamp_(min=0.0)
    return logp, share, kl


def _unbounded_items(doubt: Tensor, belief: Tensor, chance: Tensor) -> Tensor:
    """Return S (B, n) bool: the items with the largest `doubt` whose `belief` sums to at most `chance` (B,).

    A histogram of the doubts locates the lower end of S. Each further histogram covers the bin in question and half of
    either neighbour, since an item may round into them.

    Args:
        doubt: (B, n) log p_ref − log p_fused.
        belief: (B, n) mean of both probabilities.
    """
    most = torch.where(chance >= 1, torch.inf, torch.where(chance > ROUNDING_OF_RADIUS, chance, -1.0))[:, None]
    low = doubt.amin(-1, keepdim=True)
    width = doubt.amax(-1, keepdim=True) - low
    place, begin = torch.zeros_like(doubt, dtype=torch.int64), torch.zeros_like(low)
    for _ in range(ROUNDS):
        step = (width / BINS).clamp(min=1e-300)
        place = (doubt - low).div_(step).add_(1.0).clamp_(0.0, BINS + 1.0).long()  # 0 and BINS + 1: below and above
        histogram = belief.new_zeros(len(doubt), BINS + 2).scatter_add_(1, place, belief)
        beyond = histogram.flip(1).cumsum(1).flip(1)
        begin = (beyond > most).sum(-1, keepdim=True) - 1  # the bin that exceeds the limit
        low, width = low + (begin - 1.5) * step, 2 * step
    return place > begin
