"""From users who have done something to those whose knowledge is asked for: reasons, then the price."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.messages import RefreshReason
from streams.decisions.gain import describe
from streams.decisions.price import Limits, Market, admit
from streams.decisions.refresh import Policy, decide, priority
from streams.profile.state import Pending, UserState


def ask(
    state: UserState, reason: RefreshReason, now: float, worth: float, features: Sequence[float] = (),
) -> None:
    """Note in `state` that its knowledge is asked for.

    Args:
        worth: goes with the request as its priority.
        features: what a gain was expected from.
    """
    earlier = state.pending.version if state.pending else 0
    state.pending = Pending(
        version=max(state.knowledge_version, earlier) + 1, reason=reason, anchor=state.long, count=state.count,
        event_id=state.event_id, event_time=state.event_time, caused_at=state.caused_at, requested_at=now,
        priority=worth, features=list(features))
    state.last_refresh_count = state.count
    state.wanted_count = 0


def ask_for_reasons(states: Sequence[UserState], now: float, policy: Policy) -> list[bool]:
    """Ask for everyone who has a reason, whatever the price. Returns who was asked for."""
    asked = []
    for state in states:
        reason = decide(state, now, policy)
        if reason is not None:
            ask(state, reason, now, priority(state, reason, policy))
        asked.append(reason is not None)
    return asked


def ask_at_a_price(
    users: Sequence[str], states: Sequence[UserState], now: float, policy: Policy, market: Market, limits: Limits,
    alpha: float,
) -> list[bool]:
    """Ask for those whose expected gain exceeds the price.

    Without a budget those with a reason are candidates; with one, everybody whose knowledge has not seen their newest
    event is. Who has crossed no threshold is asked for as `stale`.

    Args:
        users, states: n users, each once, with their newest events folded.
        alpha: level of the contradiction test.

    Returns:
        Who was asked for, n.
    """
    places: list[int] = []
    reasons: list[RefreshReason | None] = []
    for place, state in enumerate(states):
        reason = decide(state, now, policy)
        if reason is None:
            state.wanted_count = 0
            if limits.budget is None or not _may_be_renewed(state):
                continue
        places.append(place)
        reasons.append(reason)
    asked = [False] * len(states)
    if not places:
        return asked
    wanting = [states[place] for place in places]
    features = describe(wanting, reasons, policy, alpha)
    gains = market.gain.expected(features)
    reasoned = np.array([reason is not None for reason in reasons])
    waited = np.array([s.wanted_count > 0 and s.count - s.wanted_count >= limits.patience for s in wanting])
    taken = admit(market, limits, [users[place] for place in places], gains, waited & reasoned, reasoned, now)
    for turn, place in enumerate(places):
        state, reason = states[place], reasons[turn]
        if taken[turn]:
            # Who has waited longest goes first at the worker too.
            worth = 1.0 if waited[turn] else float(gains[turn])
            ask(state, reason or "stale", now, worth, features[turn].tolist())
            asked[place] = True
        elif reason is not None and not state.wanted_count:
            state.wanted_count = state.count
    return asked


def _may_be_renewed(state: UserState) -> bool:
    # No cooldown: the price keeps calls apart, and where it is 0 there is nothing to save.
    return state.pending is None and state.knowledge_version > 0 and state.count > state.last_refresh_count
