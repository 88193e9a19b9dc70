"""Run the planner on training events, with instant knowledge, to count refreshes by reason.

The staleness limit is chosen on the result. It needs no broker, only the planner itself, in chunks of events.
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
# Quantiles of the age at use that are tried as the limit, strictest first.
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Refreshes by reason, and the age of the user's knowledge at each event (event time, seconds)."""

    refreshes: Counter[str]
    ages: NDArray[np.float64]

    @property
    def stale_share(self) -> float:
        """The share of staleness among all refreshes except first ones."""
        later = sum(self.refreshes.values()) - self.refreshes["cold_start"]
        return self.refreshes["stale"] / later if later else 0.0


def rehearse(planner: Planner, events: Sequence[Event]) -> Rehearsal:
    """Run `events`, in order of time, through the planner and answer every request at once, without a judge.

    The planner uses its thresholds only: the policy is `freshet`, whatever is set, and there is no price.
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
    """Return the update that an instant knowledge worker would send."""
    return KnowledgeUpdate(
        user_id=request.user_id, version=request.version, model_version=model_version, reason=request.reason,
        count=request.count, event_time=request.event_time, history_hash="", caused_at=request.caused_at,
        generated_at=request.requested_at)


def choose_ttl(
    events: Sequence[Event], planner_with: Callable[[float], Planner], *, stale_share: float = 0.25, users: int = 1000,
) -> tuple[float, Rehearsal]:
    """Return the age in event time, seconds, from which knowledge is stale, and the rehearsal with this limit.

    Staleness is a backstop for the other reasons. The candidates are quantiles of the age of knowledge at use, when it
    is refreshed for the other reasons only. The limit is the smallest candidate with which at most `stale_share` of the
    refreshes after the first are due to staleness; if there is none, the largest age. It is at least a minute.

    Args:
        events: training events in order of time.
        planner_with: returns a planner with the given limit in seconds.
        users: maximum number of users in the rehearsal, spread evenly; 1,000 take about 5 s in all.
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
