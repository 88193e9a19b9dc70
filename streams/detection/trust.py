"""The judge: has a user's knowledge been contradicted by what they did, and has it earned trust again?

Each margin m_t ∈ [−1, 1] is log p_fused − log p_ref of what really happened, clipped to [−B, B] and divided by B.

Harm. Under the null "knowledge does no harm on average", E[m_t | past] ≥ 0, the wealth W = mean over κ of
Π_t (1 − κ m_t) is a test supermartingale for any behaviour, so P(W ever ≥ 1/α) ≤ α (Ville). Betting on bounded means:
Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024; here a fixed mixture
instead of an adaptive κ. It starts anew with each knowledge: α is the level per knowledge, since that is what it speaks
of.

Help. The same bet on −m_t tests the null "knowledge does not help", E[m_t | past] ≤ 0. It runs over all knowledge that
a user gets after a contradiction, because what it speaks of is whether knowledge serves this user at all.

Trust. Contradicted knowledge is not used any more: trust 0 until there is new knowledge. The new one starts at the
user's standing: 1 for whoever was never contradicted, halved by each contradiction, at least `FLOOR`. Half, because one
contradiction in 1/α pieces of harmless knowledge is expected and must not cost much, and the second in a row is worth
α². Evidence of help moves trust from the standing to 1, and at 1/α the standing is 1 again. Evidence of harm scales all
of it down to 0. Both are linear in log-wealth, so each promise holds at every level x ∈ [0, 1], at any time: harmless
knowledge ever loses the share x of its trust with probability ≤ α^x, and knowledge that does not help ever regains the
share x of what was lost with probability ≤ α^x. The margins are those of the full fused model, whatever is served, so
that little trust does not slow its own recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# From cautious to bold. Under total contradiction (m = −1) κ = ½ alone crosses 1/α = 20 after 8 events, the mixture
# after 10. A fourth, 1/16, would take hundreds of events to say anything and costs the others log 4/3 = 0.29 nats.
KAPPAS: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2)
# A standing of 1/8 still serves some knowledge, in case the judge's margins miss what it is good for.
FLOOR = 1 / 8
HARM, HELP = -1, 1  # what a bet is on: margins below 0, or above


def bets(
    margins: NDArray[np.float64], bound: float, kappas: Sequence[float] = KAPPAS, side: int = HARM,
) -> NDArray[np.float64]:
    """Return the growth of log-wealth by each margin and κ.

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
        log_wealth: per κ, before; [] = nothing bet yet.
        margins: nats.

    Returns:
        log-wealth per κ after them, log W of the mixture after them, and the index of the first margin at which
        W ≥ 1/α, None if none.
    """
    before = np.array(log_wealth) if len(log_wealth) else np.zeros(len(kappas))
    if not len(margins):
        return list(log_wealth), float(mixture(before)), None
    # Summed from `before` on, so that many margins at once give the same bits as one after the other.
    growth = bets(np.asarray(margins, dtype=np.float64), bound, kappas, side)
    path = np.cumsum(np.vstack([before, growth]), axis=0)[1:]
    wealth = mixture(path)
    crossed = np.flatnonzero(wealth >= np.log(1.0 / alpha))
    return path[-1].tolist(), float(wealth[-1]), int(crossed[0]) if len(crossed) else None


def first_crossings(
    margins: NDArray[np.float64], bound: float, alpha: float, kappas: Sequence[float] = KAPPAS, side: int = HARM,
) -> NDArray[np.int64]:
    """Return when each of many users crosses 1/α, looking after every event: `wager` for whole populations.

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
    """What is believed of a user's knowledge.

    Args:
        harm: log-wealth per κ of the bet on harm by this knowledge; [] = nothing bet.
        help: of the bet on help since the last contradiction; [] = nothing bet, as while the standing is 1.
        standing: trust that new knowledge of this user starts with.
        trust: share of the full trust radius now.
        contradicted: index of the margin that crossed 1/α, None if none.
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
        harm, gain, standing: the verdict before: its `harm`, `help` and `standing`.
        margins: nats, oldest first. Those after a contradiction are left out: they speak of dead knowledge.
    """
    _, _, contradicted = wager(harm, margins, bound, alpha)
    heard = margins if contradicted is None else margins[:contradicted + 1]
    harm, harm_wealth, _ = wager(harm, heard, bound, alpha)
    help_wealth = 0.0
    if standing < 1.0:
        gain, help_wealth, helped = wager(gain, heard, bound, alpha, side=HELP)
        if helped is not None:
            gain, standing = [], 1.0
    if contradicted is not None:
        return Verdict(harm, [], max(FLOOR, standing / 2), 0.0, contradicted)
    return Verdict(harm, list(gain), standing, trusted(harm_wealth, help_wealth, standing, alpha))


def renewed(gain: Sequence[float], standing: float, alpha: float) -> float:
    """Return the trust that new knowledge starts with, no bet on harm being placed yet."""
    return trusted(0.0, float(mixture(np.array(gain))) if len(gain) else 0.0, standing, alpha)


def trusted(harm: float, gain: float, standing: float, alpha: float) -> float:
    """Return the share of the full trust radius.

    Args:
        harm, gain: log W of the mixtures of the two bets.
    """
    regained = 1.0 - radius(gain, alpha)
    return radius(harm, alpha) * (standing + (1.0 - standing) * regained)


def radius(log_wealth: float, alpha: float) -> float:
    """Return the share of the full trust radius at mixture log-wealth `log_wealth`: 1 at W ≤ 1, 0 at W ≥ 1/α."""
    return float(max(0.0, 1.0 - max(0.0, log_wealth) / np.log(1.0 / alpha)))
