"""Margins of simulated users: harmless ones with difficult distributions, and those of another user's knowledge.

The judge's null hypothesis is about clipped margins. So every null here has a mean of exactly 0 after clipping to
[−1, 1], the worst harmless case: by symmetry, in closed form, or by bisection on the exact mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Margins = NDArray[np.float64]  # (users, events), nats, oldest first, before clipping
BOUND = 1.0
ITEMS, DIM = 200, 8


def gaussian(users: int, events: int, rng: np.random.Generator) -> Margins:
    """Normal, sd 0.5: symmetric."""
    return rng.normal(0.0, 0.5, (users, events))


def skewed(users: int, events: int, rng: np.random.Generator) -> Margins:
    """Many small gains and a few large losses, c − Exp(0.4): E[max(−1, c − E)] = c − 0.4 (1 − e^{−(c+1)/0.4}) = 0."""
    scale = 0.4
    shift = bisect(lambda c: c - scale * (1 - np.exp(-(c + 1) / scale)), 0.0, 1.0)
    return shift - rng.exponential(scale, (users, events))


def heavy(users: int, events: int, rng: np.random.Generator) -> Margins:
    """With probability 0.1 a Pareto loss with minimum 0.2 and tail index 0.8 (infinite mean), else a small gain.

    The mean of a clipped loss is 0.2 + 0.2^0.8 (1 − 0.2^0.2) / 0.2; the gain balances it.
    """
    minimum, tail, probability = 0.2, 0.8, 0.1
    mean_loss = minimum + minimum**tail * (1 - minimum ** (1 - tail)) / (1 - tail)
    gain = probability * mean_loss / (1 - probability)
    loss = minimum * (1 - rng.random((users, events))) ** (-1 / tail)
    return np.where(rng.random((users, events)) < probability, -loss, gain)


def student(users: int, events: int, rng: np.random.Generator) -> Margins:
    """Student's t with 1.5 degrees of freedom, scaled by 0.3: symmetric, no variance."""
    return 0.3 * rng.standard_t(1.5, (users, events))


def adversary(users: int, events: int, rng: np.random.Generator) -> Margins:
    """A fair coin with a stake that depends on the past: 1 while the total is negative, else 0.2.

    Margins depend on each other, but the null holds: E[m | past] = 0.
    """
    signs = rng.choice([-1.0, 1.0], (users, events))
    out, total = np.empty((users, events)), np.zeros(users)
    for step in range(events):
        out[:, step] = signs[:, step] * np.where(total < 0, 1.0, 0.2)
        total += out[:, step]
    return out


def neither(users: int, events: int, rng: np.random.Generator) -> Margins:
    """Items from a third distribution q, which neither model predicts, with E_q[clipped margin] = 0 for each user.

    p_ref and p_fused are two random softmaxes over 200 items; q ∝ q₀ · exp(η m) for a random q₀, with η by bisection.
    """
    reference = _log_softmax(rng.normal(0, 1.0, (users, ITEMS)))
    fused = _log_softmax(reference + rng.normal(0, 0.7, (users, ITEMS)))
    margins = fused - reference
    clipped = np.clip(margins, -BOUND, BOUND)
    base = rng.normal(0, 1.5, (users, ITEMS))
    low, high = np.full(users, -50.0), np.full(users, 50.0)
    for _ in range(60):
        middle = (low + high) / 2
        q = np.exp(_log_softmax(base + middle[:, None] * clipped))
        above = (q * clipped).sum(1) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    q = np.exp(_log_softmax(base + high[:, None] * clipped))  # `high`: the mean is 0 or slightly above
    return _drawn(q, margins, events, rng)


NULLS: dict[str, Callable[[int, int, np.random.Generator], Margins]] = {
    "Gaussian": gaussian, "skewed": skewed, "infinite mean before clipping": heavy, "Student t, 1.5 df": student,
    "stake chosen from the past": adversary, "behaviour of neither model": neither}


def planted(
    users: int, events: int, strength: float, rng: np.random.Generator, *, wrong: bool = True,
) -> Margins:
    """Return margins of knowledge about taste: another user's (`wrong`) or the user's own.

    Items v_i and a user's taste x have 8 dimensions. Behaviour is q ∝ exp(x·v_i). The reference knows half of the
    taste, p_ref ∝ exp(½ x·v_i). Knowledge assumes the taste k: p_fused ∝ p_ref · exp(strength · k·v_i). With the user's
    own taste and strength ½, p_fused equals q.
    """
    items = rng.normal(0, 1, (ITEMS, DIM)) / np.sqrt(DIM)
    taste = rng.normal(0, 1.2, (users, DIM))
    believed = np.roll(taste, 1, axis=0) if wrong else taste
    behaviour = np.exp(_log_softmax(taste @ items.T))
    reference = _log_softmax(0.5 * taste @ items.T)
    fused = _log_softmax(reference + strength * believed @ items.T)
    return _drawn(behaviour, fused - reference, events, rng)


def _drawn(q: Margins, margins: Margins, events: int, rng: np.random.Generator) -> Margins:
    """Return the margins (U, events) of items drawn from q (U, N)."""
    users, items = q.shape
    cdf = np.cumsum(q, axis=1)
    # One sorted array for all users: user u's cdf lies in (u, u + 1].
    flat = (np.minimum(cdf / cdf[:, -1:], 1.0) + np.arange(users)[:, None]).ravel()
    wanted = rng.random((users, events)) + np.arange(users)[:, None]
    at = np.searchsorted(flat, wanted.ravel()).reshape(users, events) - np.arange(users)[:, None] * items
    return np.take_along_axis(margins, np.clip(at, 0, items - 1), axis=1)


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of an increasing function, from above: harmless means ≥ 0, not −1e-17."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) >= 0 else (middle, high)
    return high


def _log_softmax(logits: Margins) -> Margins:
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
