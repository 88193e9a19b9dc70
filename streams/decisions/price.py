"""Refresh a user when the expected gain exceeds the price: a dual price μ ≥ 0 of two limits on spending.

The goal is to maximise the total gain of refreshes subject to (a) calls ≤ budget · events, if there is a budget, and
(b) a queue no longer than the knowledge worker clears in `TARGET_S`. A refresh is made if its gain exceeds the sum of
both constraints' prices. Each price follows its projected sub-gradient, in steps of the typical gain:

    budget   μ ← [μ + η (calls − budget · events)]_+        per event, independent of time
    queue    μ ← [μ + η (queue / target − 1) Δt]_+           per second, up to `MAX_QUEUE_PRICE` typical gains

Calls left unspent over the last `CREDIT` events can be spent before the budget price rises above 0. Without this
credit, most of a wave of requests would be refused although the budget allows them.

A dual price holds its limits only on average, so two hard limits apply as well. With a budget, calls never exceed
budget · events + `BURST`; a call refused for this reason still raises the price, because it is demand at that price. No
call is made while `QUEUE_LIMIT` · target requests are outstanding.

No user starves. A user who has been due (a crossed threshold, or no knowledge yet) for `patience` of their own events
is refreshed whatever the price and the limits. Two such calls are `patience` events of that user apart, and
patience ≥ 2 / budget, so they use at most half of the budget:

    calls ≤ budget · events + BURST + users who are due at the same time

The user's state stores since when they are due. A user who does not come back is not refreshed, because nobody would
see the result.

Each streams process has its own `Market`, with a budget over its own events and a queue of its own requests. It lives
in memory. A restart loses the price (it recovers within a burst), the count of calls (one more `BURST`), the
outstanding requests (as many may be requested again), the measured speed of the worker and the learned gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, exp

import numpy as np
from numpy.typing import NDArray

from streams.decisions.gain import GainModel

# New knowledge should arrive within half a minute even when the queue is at its target.
TARGET_S = 30.0
# The worker's speed is measured while at least MIN_QUEUE requests (one forward pass) are outstanding; with fewer it
# idles. It is a mean over about SPEED_MEMORY_S of such time. START_ANSWERS per TARGET_S is the assumption before that.
START_ANSWERS, MIN_QUEUE, SPEED_MEMORY_S = 512.0, 16.0, 60.0
QUEUE_LIMIT = 2.0  # times the target
BURST = 8
CREDIT = 300.0
PATIENCE = 100
BUDGET_STEP, QUEUE_STEP, MAX_QUEUE_PRICE = 0.05, 2.0, 4.0
# The typical gain is a mean over about the last thousand candidates.
_GAIN_MEMORY = 1000.0
# The worker answers in order, so a request this much older than an answered one is lost. Same value as PENDING_S.
LOST_S = 600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on spending.

    Args:
        budget: calls per event; None = only the queue limits calls.
        min_patience: lower bound of `patience`.
    """

    budget: float | None = None
    min_patience: int = PATIENCE

    @property
    def patience(self) -> int:
        """The number of their own events after which a due user is refreshed at any price."""
        return self.min_patience if self.budget is None else max(self.min_patience, ceil(2.0 / self.budget))


@dataclass(slots=True)
class Market:
    """The state of the price. The functions below change it in place; `copy.deepcopy` copies it."""

    budget_price: float = 0.0  # below 0: unspent credit
    queue_price: float = 0.0
    typical_gain: float = 0.1  # mean |gain| of candidates, B per event; starts at that of drift that has just crossed
    events: int = 0
    calls: int = 0
    forced: int = 0
    outstanding: dict[str, float] = field(default_factory=dict)  # user → time of the unanswered request, oldest first
    answers: float = START_ANSWERS  # within `busy_s`; both decay
    busy_s: float = TARGET_S
    now: float = float("-inf")
    gain: GainModel = field(default_factory=GainModel)

    @property
    def price(self) -> float:
        """The gain a refresh must exceed, in B per event. The queue's price does not apply to an idle worker."""
        return max(0.0, self.budget_price) + (self.queue_price if len(self.outstanding) >= MIN_QUEUE else 0.0)

    @property
    def target(self) -> float:
        """The number of requests the worker clears in `TARGET_S`, at least `MIN_QUEUE`."""
        return max(MIN_QUEUE, TARGET_S * self.answers / self.busy_s)


def advance(market: Market, limits: Limits, events: int, now: float) -> None:
    """Advance the prices by `events` events and to the time `now`, seconds of a clock that never goes back."""
    market.events += events
    if limits.budget is not None:
        step = BUDGET_STEP * market.typical_gain * limits.budget
        market.budget_price = max(-step * CREDIT, market.budget_price - step * events)
    passed = min(TARGET_S, max(0.0, now - market.now)) if market.now > float("-inf") else 0.0
    market.now = max(now, market.now)
    if not passed:
        return
    over = len(market.outstanding) / market.target - 1.0
    step = QUEUE_STEP * market.typical_gain * over * passed / TARGET_S
    market.queue_price = min(MAX_QUEUE_PRICE * market.typical_gain, max(0.0, market.queue_price + step))
    if len(market.outstanding) >= MIN_QUEUE:
        keep = exp(-passed / SPEED_MEMORY_S)
        market.answers *= keep
        market.busy_s = market.busy_s * keep + passed


def record_answer(market: Market, user: str) -> None:
    """Record that a user's request was answered. Call `advance` first."""
    if len(market.outstanding) >= MIN_QUEUE:
        market.answers += 1.0
    asked_at = market.outstanding.pop(user, None)
    while asked_at is not None and market.outstanding:
        oldest, oldest_at = next(iter(market.outstanding.items()))
        if oldest_at > asked_at - LOST_S:
            return
        del market.outstanding[oldest]


def admit(
    market: Market, limits: Limits, users: Sequence[str], gains: NDArray[np.float64], forced: NDArray[np.bool_],
    due: NDArray[np.bool_], now: float,
) -> NDArray[np.bool_]:
    """Decide which candidates are refreshed, the largest gain first, and charge for each call.

    Args:
        users: n candidates, each once.
        gains: (n,) expected gains, B per event.
        forced: (n,) candidates that have waited for `patience` events; always admitted.
        due: (n,) candidates with a reason. At price 0 they are admitted whatever their gain; others need a gain above
            the price.

    Returns:
        (n,) admitted candidates.
    """
    admitted = np.zeros(len(users), dtype=bool)
    if not len(users):
        return admitted
    share = 1.0 - exp(-len(users) / _GAIN_MEMORY)
    market.typical_gain = max(1e-4, (1.0 - share) * market.typical_gain + share * float(np.abs(gains).mean()))
    step = BUDGET_STEP * market.typical_gain if limits.budget is not None else 0.0
    for index in np.flatnonzero(forced).tolist():
        _charge(market, users[index], now, step)
        market.forced += 1
        admitted[index] = True
    order = np.argsort(-gains, kind="stable")
    for index in order[~forced[order]].tolist():
        worthwhile = gains[index] > market.price or (market.price == 0.0 and due[index])
        if not worthwhile:
            if market.price > 0.0:
                break  # the remaining gains are smaller still
            continue
        has_room = users[index] in market.outstanding or len(market.outstanding) + 1 <= QUEUE_LIMIT * market.target
        if not has_room:
            continue
        if limits.budget is not None and market.calls + 1 > limits.budget * market.events + BURST:
            # Capped at the refused gain: a price far above demand would leave budget unspent until it falls again.
            market.budget_price = min(market.budget_price + step, max(market.budget_price, float(gains[index])))
            continue
        _charge(market, users[index], now, step)
        admitted[index] = True
    return admitted


def _charge(market: Market, user: str, now: float, step: float) -> None:
    market.calls += 1
    market.budget_price += step
    market.outstanding.pop(user, None)  # reinsert as the newest
    market.outstanding[user] = now
