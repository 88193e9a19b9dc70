"""A rehearsal of the stage on training events, with knowledge there the moment it is asked for: how often, and why?

The staleness limit is chosen on it. Pure and fast: the planner itself, in chunks, without a broker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from schemas.messages import KnowledgeRequest, KnowledgeUpdate
from streams.decisions.planner import Planner, States
from streams.profile.fold import Event

CHUNK = 512
# Quantiles of age at use that are tried as the limit, from the strictest.
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What happened: refreshes by reason, and the age in event time, seconds, of the knowledge each event met."""

    refreshes: Counter[str]
    ages: NDArray[np.float64]

    @property
    def stale_share(self) -> float:
        """Share of all refreshes after the first that were for staleness."""
        later = sum(self.refreshes.values()) - self.refreshes["cold_start"]
        return self.refreshes["stale"] / later if later else 0.0


def rehearse(planner: Planner, events: Sequence[Event]) -> Rehearsal:
    """Run `events`, in order of time, through the planner and answer every request at once. There is no judge.

    The planner decides as its thresholds say, whatever policy is set and without a price.
    """
    planner.policy, planner.market = replace(planner.policy, name="freshet"), None
    states: States = {}
    refreshes: Counter[str] = Counter()
    ages: list[float] = []
    for start in range(0, len(events), CHUNK):
        chunk = events[start:start + CHUNK]
        asked_with = {user: state.knowledge_event_time for user, state in states.items() if state.knowledge_version}
        ages.extend(e.event_time - asked_with[e.user_id] for e in chunk if e.user_id in asked_with)
        plan = planner.events(states, chunk, chunk[-1].event_time)
        refreshes.update(request.reason for request in plan.knowledge)
        planner.updates(states, [(answer(request), 0.0) for request in plan.knowledge], chunk[-1].event_time)
    return Rehearsal(refreshes, np.array(ages))


def answer(request: KnowledgeRequest, model_version: str = "") -> KnowledgeUpdate:
    """Return the update an ideal knowledge worker sends."""
    return KnowledgeUpdate(
        user_id=request.user_id, version=request.version, model_version=model_version, reason=request.reason,
        count=request.count, event_time=request.event_time, history_hash="", caused_at=request.caused_at,
        generated_at=request.requested_at)


def choose_ttl(
    events: Sequence[Event], planner_with: Callable[[float], Planner], *, stale_share: float = 0.25, users: int = 1000,
) -> tuple[float, Rehearsal]:
    """Return the age in event time, seconds, at which knowledge is stale, and the rehearsal with it.

    The criterion: staleness is the backstop, not the rule. Of the quantiles of the age at which events meet knowledge
    that is refreshed for other reasons only, the smallest with which at most `stale_share` of all refreshes after the
    first are for staleness; if none is, the largest age. At least a minute.

    Args:
        events: training events in order of time.
        planner_with: returns a planner whose limit is the given number of seconds.
        users: rehearse with at most so many of the users, spread evenly; a thousand take some 5 s in all.
    """
    everyone = list(dict.fromkeys(event.user_id for event in events))
    some = set(everyone[::-(-len(everyone) // users)]) if everyone else set()
    events = [event for event in events if event.user_id in some]
    ages = rehearse(planner_with(float("inf")), events).ages
    ages = ages[ages > 0]
    if not len(ages):
        week = 7 * 86_400.0
        return week, rehearse(planner_with(week), events)
    for quantile in QUANTILES:
        ttl = max(60.0, float(np.quantile(ages, quantile)))
        rehearsal = rehearse(planner_with(ttl), events)
        if rehearsal.stale_share <= stale_share:
            return ttl, rehearsal
    ttl = max(60.0, float(ages.max()))
    return ttl, rehearse(planner_with(ttl), events)
