"""The judge: sequential tests of whether a user's knowledge does harm or helps, and the trust that follows.

Each margin m_t ∈ [−1, 1] is log p_fused − log p_ref of the user's actual item, clipped to [−B, B] and divided by B.

Harm. Under the null "knowledge does no harm on average", E[m_t | past] ≥ 0, the wealth W = mean over κ of
Π_t (1 − κ m_t) is a test supermartingale for any behaviour, so P(W ever ≥ 1/α) ≤ α (Ville). Betting on bounded means:
Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024; here with a fixed
mixture instead of an adaptive κ. The test restarts with each piece of knowledge, so α is the level per piece.

Help. The same bet on −m_t tests the null "knowledge does not help", E[m_t | past] ≤ 0. It runs over all knowledge that
the user gets after a contradiction, because it asks whether knowledge helps this user at all.

Trust. Contradicted knowledge gets trust 0 and is not used. New knowledge starts with the user's standing: 1 without a
contradiction, halved by each one, at least `MIN_STANDING`. Only halved, because one contradiction in 1/α pieces of
harmless knowledge is expected; two in a row have probability α². Evidence of help raises trust from the standing
towards 1, and at wealth 1/α the standing is 1 again. Evidence of harm scales trust down to 0.

Both are linear in log-wealth, so these bounds hold for every x ∈ [0, 1], at any time: harmless knowledge ever loses a
share x of its trust with probability ≤ α^x, and knowledge that does not help ever regains a share x of the lost trust
with probability ≤ α^x. Margins come from the full fused model whatever is served, so low trust does not slow its own
recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# With m = −1 throughout, κ = ½ alone crosses 1/α = 20 after 8 events, the mixture after 10. A fourth κ of 1/16 needs
# hundreds of events and costs the others log 4/3 = 0.29 nats.
KAPPAS: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2)
# At 1/8 some knowledge is still served, in case its benefit does not show in the margins.
MIN_STANDING = 1 / 8
HARM, HELP = -1, 1  # side of a bet: margins below 0, or above


def bets(
    margins: NDArray[np.float64], bound: float, kappas: Sequence[float] = KAPPAS, side: int = HARM,
) -> NDArray[np.float64]:
    """Return the growth of log-wealth for each margin and κ.

    Args:
        margins: (n,) nats.
        bound: B > 0, nats.
        side: HARM or HELP.

    Returns:
        (n, K): log(1 + side · κ · clip(margin, −B, B) / B).
    """
    m = np.clip(margins, -bound, bound) / bound
    return np.log1p(side * np.asarray(kappas)[None, :] * m[:, None])


def mixture(log_wealth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log W of the mixture: (..., K) log-wealths → (...)."""
    top = log_wealth.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(log_wealth - top).mean(axis=-1, keepdims=True)))[..., 0]


def wager(
    log_wealth: Sequence[float], margins: Sequence[float], bound: float, alpha: float,
    kappas: Sequence[float] = KAPPAS, side: int = HARM,
) -> tuple[list[float], float, int | None]:
    """Bet on margins, oldest first.

    Args:
        log_wealth: log-wealth per κ before these margins; [] = no bet so far.
        margins: nats.

    Returns:
        log-wealth per κ after these margins, log W of the mixture, and the index of the first margin at which
        W ≥ 1/α, None if there is none.
    """
    before = np.array(log_wealth) if len(log_wealth) else np.zeros(len(kappas))
    if not len(margins):
        return list(log_wealth), float(mixture(before)), None
    # Summed in order from `before`, so that many margins at once give the same bits as one at a time.
    growth = bets(np.asarray(margins, dtype=np.float64), bound, kappas, side)
    path = np.cumsum(np.vstack([before, growth]), axis=0)[1:]
    wealth = mixture(path)
    crossed = np.flatnonzero(wealth >= np.log(1.0 / alpha))
    return path[-1].tolist(), float(wealth[-1]), int(crossed[0]) if len(crossed) else None


def first_crossings(
    margins: NDArray[np.float64], bound: float, alpha: float, kappas: Sequence[float] = KAPPAS, side: int = HARM,
) -> NDArray[np.int64]:
    """Return when each of many users crosses 1/α, checked after every event: `wager` for a population.

    Args:
        margins: (U, T) nats, oldest first; NaN = no event (users of different length end in NaN).

    Returns:
        (U,) the column of the crossing, −1 = none.
    """
    wealth = np.zeros((len(margins), len(kappas)))
    first = np.full(len(margins), -1, np.int64)
    limit = np.log(1.0 / alpha)
    for step, column in enumerate(np.asarray(margins, dtype=np.float64).T):
        wealth += np.where(np.isnan(column)[:, None], 0.0, bets(np.nan_to_num(column), bound, kappas, side))
        first[(first < 0) & (mixture(wealth) >= limit)] = step
    return first


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of a user's tests.

    Args:
        harm: log-wealth per κ of the bet on harm by this knowledge; [] = no bet so far.
        help: log-wealth per κ of the bet on help since the last contradiction; [] = no bet, always at standing 1.
        standing: trust that new knowledge of this user starts with.
        trust: current share of the full trust radius.
        contradicted: index of the margin that crossed 1/α, None if there is none.
    """

    harm: list[float]
    help: list[float]
    standing: float
    trust: float
    contradicted: int | None = None


def judge(
    harm: Sequence[float], gain: Sequence[float], standing: float, margins: Sequence[float], bound: float, alpha: float,
) -> Verdict:
    """Bet on a user's margins in both directions.

    Args:
        harm, gain, standing: `harm`, `help` and `standing` of the previous verdict.
        margins: nats, oldest first. Margins after a contradiction are ignored, because that knowledge is no longer
            used.
    """
    _, _, contradicted = wager(harm, margins, bound, alpha)
    valid = margins if contradicted is None else margins[:contradicted + 1]
    harm, harm_wealth, _ = wager(harm, valid, bound, alpha)
    help_wealth = 0.0
    if standing < 1.0:
        gain, help_wealth, helped = wager(gain, valid, bound, alpha, side=HELP)
        if helped is not None:
            gain, standing = [], 1.0
    if contradicted is not None:
        return Verdict(harm, [], max(MIN_STANDING, standing / 2), 0.0, contradicted)
    return Verdict(harm, list(gain), standing, trust_level(harm_wealth, help_wealth, standing, alpha))


def initial_trust(gain: Sequence[float], standing: float, alpha: float) -> float:
    """Return the trust that new knowledge starts with, before any bet on harm."""
    return trust_level(0.0, float(mixture(np.array(gain))) if len(gain) else 0.0, standing, alpha)


def trust_level(harm: float, gain: float, standing: float, alpha: float) -> float:
    """Return the share of the full trust radius that the evidence allows.

    Args:
        harm, gain: log W of the mixture of the bets on harm and on help.
    """
    regained = 1.0 - remaining_share(gain, alpha)
    return remaining_share(harm, alpha) * (standing + (1.0 - standing) * regained)


def remaining_share(log_wealth: float, alpha: float) -> float:
    """Return the share left at the mixture's log-wealth `log_wealth`: 1 at W ≤ 1, 0 at W ≥ 1/α."""
    return float(max(0.0, 1.0 - max(0.0, log_wealth) / np.log(1.0 / alpha)))
