"""Choose the users of a batch whose knowledge is requested: first by reason, then by price."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.messages import RefreshReason
from streams.decisions.gain import refresh_features
from streams.decisions.price import Limits, Market, admit
from streams.decisions.refresh import Policy, decide, priority
from streams.profile.state import Pending, UserState


def mark_requested(
    state: UserState, reason: RefreshReason, now: float, worth: float, features: Sequence[float] = (),
) -> None:
    """Record in `state` that new knowledge is requested.

    Args:
        worth: the request's priority.
        features: the features that the expected gain was computed from.
    """
    earlier = state.pending.version if state.pending else 0
    state.pending = Pending(
        version=max(state.knowledge_version, earlier) + 1, reason=reason, anchor=state.long, count=state.count,
        event_id=state.event_id, event_time=state.event_time, caused_at=state.caused_at, requested_at=now,
        priority=worth, features=list(features))
    state.last_refresh_count = state.count
    state.wanted_count = 0


def request_by_reason(states: Sequence[UserState], now: float, policy: Policy) -> list[bool]:
    """Request knowledge for every user with a reason, whatever the price.

    Returns:
        Per user, whether knowledge was requested.
    """
    requested = []
    for state in states:
        reason = decide(state, now, policy)
        if reason is not None:
            mark_requested(state, reason, now, priority(state, reason, policy))
        requested.append(reason is not None)
    return requested


def request_by_price(
    users: Sequence[str], states: Sequence[UserState], now: float, ticks: float, policy: Policy, market: Market,
    limits: Limits, alpha: float,
) -> list[bool]:
    """Request knowledge for users whose expected gain exceeds the price.

    Without a budget, only users with a reason are candidates. With a budget, every user whose knowledge lacks their
    newest event is. A request for a user who crossed no threshold has the reason `stale`.

    Args:
        users, states: n users, each once, with their newest events folded.
        now, ticks: wall clock and monotonic seconds.
        alpha: level of the contradiction test.

    Returns:
        Per user, whether knowledge was requested, n.
    """
    positions: list[int] = []
    reasons: list[RefreshReason | None] = []
    for position, state in enumerate(states):
        reason = decide(state, now, policy)
        if reason is None:
            state.wanted_count = 0
            if limits.budget is None or not _can_refresh_early(state):
                continue
        positions.append(position)
        reasons.append(reason)
    requested = [False] * len(states)
    if not positions:
        return requested
    candidates = [states[position] for position in positions]
    features = refresh_features(candidates, reasons, policy, alpha)
    gains = market.gain.expected(features)
    due = np.array([reason is not None for reason in reasons])
    waited = np.array([s.wanted_count > 0 and s.count - s.wanted_count >= limits.patience for s in candidates])
    admitted = admit(market, limits, [users[position] for position in positions], gains, waited & due, due, ticks)
    for index, position in enumerate(positions):
        state, reason = states[position], reasons[index]
        if admitted[index]:
            # The worker, too, serves users who ran out of patience first.
            worth = 1.0 if waited[index] else float(gains[index])
            mark_requested(state, reason or "stale", now, worth, features[index].tolist())
            requested[position] = True
        elif reason is not None and not state.wanted_count:
            state.wanted_count = state.count
    return requested


def _can_refresh_early(state: UserState) -> bool:
    # No cooldown here: the price spaces calls out, and at price 0 there is no need to save any.
    return state.pending is None and state.knowledge_version > 0 and state.count > state.last_refresh_count
