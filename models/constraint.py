"""The trust region: how far knowledge may move what behaviour alone would recommend.

For each user, max_p E_p[s_fused − s_ref] subject to KL(p ‖ p_ref) ≤ ε has the solution p_β ∝ p_ref · exp(β Δ) with
Δ = s_fused − s_ref and β = 1/λ the Lagrange multiplier's inverse; β is held at 1 at most, where p is the fused model.
KL(p_β ‖ p_ref) = β A′(β) − A(β) with A the log-partition function, and its derivative is β Var_β(Δ) ≥ 0, so the root
is unique: found by Newton's method on √(2 KL), which is nearly linear in β, kept inside a shrinking bracket.
"""

from __future__ import annotations

import torch
from torch import Tensor

DELTA = 0.1  # δ, nats: losing less than this to the reference is no harm (LWGR's margin)
MAX_STEPS = 100  # bisection alone needs 50 for 1e-15; Newton takes 3 to 6
TOLERANCE = 1e-9  # nats; asked for are 1e-6


def trust_region(ref_logp: Tensor, delta: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best distribution within ε nats of the reference, for a batch of users.

    Args:
        ref_logp: (B, n) log p_ref; −inf masks an item. A row with every item masked comes back as it is.
        delta: (B, n) Δ, finite where not masked. A constant per row changes nothing.
        epsilon: (B,) ≥ 0, nats.

    Returns:
        log p (B, n), 1/λ (B,) in [0, 1] and KL(p ‖ p_ref) (B,), float64. Either |KL − ε| ≤ 1e-6 or 1/λ = 1 and
        KL ≤ ε. Where ε is 0, 1/λ is 0 and log p is `ref_logp` itself. Masked items stay at −inf.
    """
    given = ref_logp.double()
    masked = given == -torch.inf
    empty = masked.all(-1)
    ref = given.masked_fill(empty[:, None], 0.0).log_softmax(-1)
    prob = ref.exp()
    # Centred under p_ref: A(β) is then of the order of the KL itself and loses no digits to cancellation.
    d = delta.double().masked_fill(masked, 0.0)
    d = d - (prob * d).sum(-1, keepdim=True)
    epsilon = epsilon.double()
    beta = torch.ones_like(epsilon)
    kl = _divergence(ref, d, beta)[0]
    beta[(epsilon == 0) | empty] = 0.0
    open_ = torch.nonzero((kl > epsilon) & (beta > 0)).squeeze(-1)
    if len(open_):
        beta[open_] = _solve(ref[open_], d[open_], epsilon[open_])
    kl = torch.where(beta == 0, 0.0, _divergence(ref, d, beta)[0])
    moved = (ref + beta[:, None] * d).log_softmax(-1)
    return torch.where(beta[:, None] == 0, given, moved), beta, kl


def _divergence(ref: Tensor, d: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(p_β ‖ p_ref) and Var_β(Δ), (B,) each."""
    tilted = ref + beta[:, None] * d
    log_partition = tilted.logsumexp(-1)
    prob = (tilted - log_partition[:, None]).exp()
    mean = (prob * d).sum(-1)
    variance = (prob * (d - mean[:, None]) ** 2).sum(-1)
    return (beta * mean - log_partition).clamp(min=0.0), variance


def _solve(ref: Tensor, d: Tensor, epsilon: Tensor) -> Tensor:
    """Return β with KL(β) = ε for rows whose KL(1) > ε > 0; rows that are done leave the batch."""
    low, high = torch.zeros_like(epsilon), torch.ones_like(epsilon)
    sd = (ref.exp() * d**2).sum(-1).sqrt()
    beta = ((2 * epsilon).sqrt() / sd).clamp(max=0.999)  # exact where Δ is Gaussian under p_ref
    found = torch.zeros_like(epsilon)
    rows = torch.arange(len(epsilon), device=epsilon.device)
    for _ in range(MAX_STEPS):
        kl, variance = _divergence(ref, d, beta)
        found[rows] = beta
        low, high = torch.where(kl < epsilon, beta, low), torch.where(kl < epsilon, high, beta)
        left = (kl - epsilon).abs() > torch.minimum(torch.full_like(epsilon, TOLERANCE), 1e-6 * epsilon)
        left &= high - low > 1e-15
        if not left.any():
            break
        root, target = (2 * kl).sqrt(), (2 * epsilon).sqrt()
        newton = beta + (target - root) * root / (beta * variance)
        beta = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)  # nan falls to bisection
        rows, beta, low, high = rows[left], beta[left], low[left], high[left]
        ref, d, epsilon = ref[left], d[left], epsilon[left]
    return found
