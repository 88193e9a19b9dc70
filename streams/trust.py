"""The judge: has a user's knowledge been contradicted by what they did?

Each margin m_t ∈ [−1, 1] is log p_fused − log p_ref of what really happened, clipped to [−B, B] and divided by B. Under
the null "knowledge does no harm on average", E[m_t | past] ≥ 0, the wealth W = mean over κ of Π_t (1 − κ m_t) is a test
supermartingale for any behaviour, so P(W ever ≥ 1/α) ≤ α (Ville). Betting on bounded means: Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS-B 2024; here a fixed mixture instead of an adaptive κ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# From cautious to bold. Under total contradiction (m = −1) κ = ½ alone crosses 1/α = 20 after 8 events, the mixture
# after 10. A fourth, 1/16, would take hundreds of events to say anything and costs the others log 4/3 = 0.29 nats.
KAPPAS: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2)
_KAPPA = np.array(KAPPAS)


def bets(margins: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Return the growth of log-wealth by each margin and κ.

    Args:
        margins: (n,) nats.
        bound: B > 0, nats.

    Returns:
        (n, K): log(1 − κ · clip(margin, −B, B) / B).
    """
    m = np.clip(margins, -bound, bound) / bound
    return np.log1p(-_KAPPA[None, :] * m[:, None])


def mixture(log_wealth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log W of the mixture: (..., K) log-wealths → (...)."""
    top = log_wealth.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(log_wealth - top).mean(axis=-1, keepdims=True)))[..., 0]


def wager(
    log_wealth: Sequence[float], margins: Sequence[float], bound: float, alpha: float
) -> tuple[list[float], float, int | None]:
    """Bet on one user's margins, oldest first.

    Args:
        log_wealth: per κ, before; [] = nothing bet yet.
        margins: nats.

    Returns:
        log-wealth per κ after them, log W of the mixture after them, and the index of the first margin at which
        W ≥ 1/α, None if none.
    """
    before = np.array(log_wealth) if log_wealth else np.zeros(len(KAPPAS))
    if not len(margins):
        return list(log_wealth), float(mixture(before)), None
    # Summed from `before` on, so that many margins at once give the same bits as one after the other.
    path = np.cumsum(np.vstack([before, bets(np.asarray(margins, dtype=np.float64), bound)]), axis=0)[1:]
    wealth = mixture(path)
    crossed = np.flatnonzero(wealth >= np.log(1.0 / alpha))
    return path[-1].tolist(), float(wealth[-1]), int(crossed[0]) if len(crossed) else None


def radius(log_wealth: float, alpha: float) -> float:
    """Return the share of the full trust radius at mixture log-wealth `log_wealth`: 1 at W ≤ 1, 0 at W ≥ 1/α."""
    return float(max(0.0, 1.0 - max(0.0, log_wealth) / np.log(1.0 / alpha)))
