"""Refresh when the expected gain exceeds the price: μ ≥ 0, dual to two limits on what may be spent.

Maximise the gain of refreshes subject to (a) calls ≤ budget · events, if there is a budget, and (b) a queue no longer
than the knowledge worker clears in `TARGET_S`. A refresh is worth its call when its gain exceeds the sum of the two
constraints' prices; each follows its projected sub-gradient, in steps of the typical gain:

    budget   μ ← [μ + η (calls − budget · events)]_+        per event; time plays no part
    queue    μ ← [μ + η (queue / target − 1) Δt]_+           per second, up to `SHUT` typical gains

What was left unspent over the last `CREDIT` events may be spent before the budget's price rises above 0: waves of wants
come and go, and a price without memory would turn most of a wave away while the budget lasts.

A dual price holds its limits on average only, so two ledgers hold them in the meantime. Under a budget no call is made
beyond budget · events + `BURST`; one that is refused for that raises the price as if it had been made (it is demand at
that price). And none is made while `FULL` · target requests are out.

Nobody starves. A user whose want (a crossed threshold, or no knowledge yet) has waited for `patience` of their own
events is refreshed whatever the price and the ledgers. Between two such calls lie `patience` events of that user, and
patience ≥ 2 / budget, so they are at most half of the budget:

    calls ≤ budget · events + BURST + users who want a refresh at the same time

The want itself is in the user's state and durable. A user who does not come back is not refreshed meanwhile: nobody
would see it.

One `Market` belongs to one streams process: with several, each keeps its budget over its own events, and its queue is
what it has asked for itself. It lives in memory. A restart forgets the price (it rises again within a burst), the
ledger (one more `BURST`), requests on their way (up to as many more may be asked for), the measured speed of
the worker, and what was learned about gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, exp

import numpy as np
from numpy.typing import NDArray

from streams.decisions.gain import GainModel

# A user who has moved on is to be served by what they do now, within half a minute at worst.
TARGET_S = 30.0
# The worker's speed is what it clears while at least LEAST requests, one of its forward passes, are out (with fewer it
# waits for us), over the last minute of that. Before it is known it is taken to be START per TARGET_S.
START, LEAST, MEMORY_S = 512.0, 16.0, 60.0
FULL = 2.0
BURST = 8
CREDIT = 300.0
PATIENCE = 100
BUDGET_STEP, QUEUE_STEP, SHUT = 0.05, 2.0, 4.0
# The typical gain is a mean over the last thousand candidates.
_MEMORY = 1000.0
# A request this much older than one that was answered is lost: the worker takes them in order. As PENDING_S.
LOST_S = 600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent.

    Args:
        budget: calls per event; None = no limit but the queue's.
        least_patience: own events of a user that a want may wait for, at least.
    """

    budget: float | None = None
    least_patience: int = PATIENCE

    @property
    def patience(self) -> int:
        """A user's own events that a want waits for at most."""
        return self.least_patience if self.budget is None else max(self.least_patience, ceil(2.0 / self.budget))


@dataclass(slots=True)
class Market:
    """The state of the price. A plain value: copied with `copy.deepcopy`, changed in place by the functions below."""

    budget_price: float = 0.0  # below 0: unspent
    queue_price: float = 0.0
    typical: float = 0.1  # mean |gain| of candidates, B per event; at first that of drift that has just crossed
    events: int = 0
    calls: int = 0
    forced: int = 0
    out: dict[str, float] = field(default_factory=dict)  # user → when asked for, the oldest first; not yet answered
    answers: float = START  # over `busy_s`, both fading
    busy_s: float = TARGET_S
    now: float = float("-inf")
    gain: GainModel = field(default_factory=GainModel)

    @property
    def price(self) -> float:
        """What a refresh must bring, in B per event. No worker stands idle for the queue's price."""
        return max(0.0, self.budget_price) + (self.queue_price if len(self.out) >= LEAST else 0.0)

    @property
    def target(self) -> float:
        """The queue that is cleared in `TARGET_S`."""
        return max(LEAST, TARGET_S * self.answers / self.busy_s)


def advance(market: Market, limits: Limits, events: int, now: float) -> None:
    """Let `events` events and the time up to `now`, wall clock in seconds, pass."""
    market.events += events
    if limits.budget is not None:
        step = BUDGET_STEP * market.typical * limits.budget
        market.budget_price = max(-step * CREDIT, market.budget_price - step * events)
    passed = min(TARGET_S, max(0.0, now - market.now)) if market.now > float("-inf") else 0.0
    market.now = max(now, market.now)
    if not passed:
        return
    over = len(market.out) / market.target - 1.0
    step = QUEUE_STEP * market.typical * over * passed / TARGET_S
    market.queue_price = min(SHUT * market.typical, max(0.0, market.queue_price + step))
    if len(market.out) >= LEAST:
        keep = exp(-passed / MEMORY_S)
        market.answers *= keep
        market.busy_s = market.busy_s * keep + passed


def answered(market: Market, user: str) -> None:
    """Note that a user's request has been answered; `advance` the time first."""
    if len(market.out) >= LEAST:
        market.answers += 1.0
    asked = market.out.pop(user, None)
    while asked is not None and market.out:
        other, when = next(iter(market.out.items()))
        if when > asked - LOST_S:
            return
        del market.out[other]


def admit(
    market: Market, limits: Limits, users: Sequence[str], gains: NDArray[np.float64], forced: NDArray[np.bool_],
    reasoned: NDArray[np.bool_], now: float,
) -> NDArray[np.bool_]:
    """Decide who is refreshed, the largest gain first, and charge for it.

    Args:
        users: n candidates, each once.
        gains: (n,) expected, B per event.
        forced: (n,) has waited for `patience`.
        reasoned: (n,) has crossed a threshold. Without a price such a candidate is taken whatever its gain; others need
            a gain above 0, and a budget.

    Returns:
        (n,) who is refreshed.
    """
    taken = np.zeros(len(users), dtype=bool)
    if not len(users):
        return taken
    share = 1.0 - exp(-len(users) / _MEMORY)
    market.typical = max(1e-4, (1.0 - share) * market.typical + share * float(np.abs(gains).mean()))
    step = BUDGET_STEP * market.typical if limits.budget is not None else 0.0
    for index in np.flatnonzero(forced).tolist():
        _take(market, users[index], now, step)
        market.forced += 1
        taken[index] = True
    order = np.argsort(-gains, kind="stable")
    for index in order[~forced[order]].tolist():
        worth = gains[index] > market.price or (market.price == 0.0 and reasoned[index])
        if not worth:
            if market.price > 0.0:
                break  # nor is anyone further down
            continue
        room = users[index] in market.out or len(market.out) + 1 <= FULL * market.target
        if not room:
            continue
        if limits.budget is not None and market.calls + 1 > limits.budget * market.events + BURST:
            # Not above what it refuses: a price that ran away would leave budget unspent while it comes back.
            market.budget_price = min(market.budget_price + step, max(market.budget_price, float(gains[index])))
            continue
        _take(market, users[index], now, step)
        taken[index] = True
    return taken


def _take(market: Market, user: str, now: float, step: float) -> None:
    market.calls += 1
    market.budget_price += step
    market.out.pop(user, None)  # to the young end
    market.out[user] = now
