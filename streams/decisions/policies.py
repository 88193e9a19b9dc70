"""The policies that `settings.refresh.policy` selects, so that they can be compared on equal terms.

Every policy but `never` makes the first request when the history reaches `min_history`. The table lists later requests.

| policy | requests knowledge |
|---|---|
| `never` | never |
| `once` | never again after the first request |
| `nightly` | at the end of each period, for users with new events (the practice of KAR and GRASP) |
| `every-n` | with every `every`-th event of the user |
| `always` | with every event |
| `drift`, `judge` | on drift only, on contradiction only |
| `freshet` | for all four reasons, at a price (see `price`) |

`nightly` needs no scan of all users, because the result of a nightly run is not used before the user comes back. The
request is made with the user's first event of a later period, from the history without that event, which is what a run
at the period's end would have read. Replay answers before that event is judged. In the live stack the event is judged
while the request is still in flight, so there `nightly` is one event per period worse than a real nightly run.

Scheduled policies (`nightly`, `every-n`, `always`) do not wait for an answer: a newer request replaces the older one. A
batch with several events of a user leads to one request, after the last event.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import floor
from typing import Literal

from schemas.messages import RefreshReason
from streams.profile.fold import Event
from streams.profile.state import UserState

PolicyName = Literal["never", "once", "nightly", "every-n", "always", "drift", "judge", "freshet"]

# The reasons a policy acts on, in addition to its schedule.
REASONS: dict[PolicyName, frozenset[RefreshReason]] = {
    "never": frozenset(),
    "once": frozenset({"cold_start"}),
    "nightly": frozenset({"cold_start"}),
    "every-n": frozenset({"cold_start"}),
    "always": frozenset({"cold_start"}),
    "drift": frozenset({"cold_start", "drift"}),
    "judge": frozenset({"cold_start", "contradiction"}),
    "freshet": frozenset({"cold_start", "drift", "contradiction", "stale"}),
}


def period(event_time: float, period_s: float) -> int:
    """Return the number of the period an event time, seconds, lies in."""
    return floor(event_time / period_s)


def period_ended(state: UserState, event: Event, min_history: int, period_s: float) -> bool:
    """Return whether a run at the end of a period would have made new knowledge before `event`.

    True if a period has ended since the user's newest event and the history contains events since the last request.
    """
    if event.backfill or not state.times or state.count < min_history:
        return False
    asked = state.pending.count if state.pending is not None else state.knowledge_count
    return state.count > asked and period(event.event_time, period_s) > period(state.event_time, period_s)


def by_period(
    states: Mapping[str, UserState], groups: Mapping[str, Sequence[Event]], period_s: float,
) -> Iterator[dict[str, Sequence[Event]]]:
    """Split a batch into parts in which each user's events lie in one period.

    Args:
        groups: the batch by user, each user's in order of arrival.
    """
    parts: list[dict[str, Sequence[Event]]] = []
    for user, group in groups.items():
        newest = states[user].event_time
        start = part = 0
        for position, event in enumerate(group):
            if position > start and period(event.event_time, period_s) > period(newest, period_s):
                _add_part(parts, part, user, group[start:position])
                start, part = position, part + 1
            newest = max(newest, event.event_time)
        _add_part(parts, part, user, group[start:])
    yield from parts


def _add_part(parts: list[dict[str, Sequence[Event]]], part: int, user: str, events: Sequence[Event]) -> None:
    if part == len(parts):
        parts.append({})
    parts[part][user] = events
