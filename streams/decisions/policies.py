"""The rules that `settings.refresh.policy` chooses between, so that they can be compared on equal terms.

| policy | asks |
|---|---|
| `never` | never |
| `once` | when the history has reached `min_history`, and never again |
| `nightly` | so at first; then, of everyone with new events, at each end of a period (the practice of KAR and GRASP) |
| `every-n` | so at first; then with every `every`-th event of the user |
| `always` | so at first; then with every event |
| `drift`, `judge` | so at first; then on drift alone, on contradiction alone |
| `freshet` | for all four reasons, and at a price (see `price`) |

`nightly` without a scan of all users: nobody sees what a nightly run made of a user before that user is back. So it is
asked for with the user's first event of a later period, from the history without that event, which is what the run at
the period's end would have read. Replay answers it before that event is judged; in the live stack the event is judged
while the request is on its way, so there `nightly` is one event per period worse than a real nightly run.

Schedules (`nightly`, `every-n`, `always`) do not wait for an answer: the newer request replaces the older one. A batch
with several events of a user asks once, after the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import floor
from typing import Literal

from schemas.messages import RefreshReason
from streams.profile.fold import Event
from streams.profile.state import UserState

PolicyName = Literal["never", "once", "nightly", "every-n", "always", "drift", "judge", "freshet"]

# What a policy acts on beside its schedule.
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
    """Tell whether a run at the end of a period would have made new knowledge before `event`.

    So if a period has ended since the user's newest event, and the history holds something that was not asked about.
    """
    if event.backfill or not state.times or state.count < min_history:
        return False
    asked = state.pending.count if state.pending is not None else state.knowledge_count
    return state.count > asked and period(event.event_time, period_s) > period(state.event_time, period_s)


def by_period(
    states: Mapping[str, UserState], groups: Mapping[str, Sequence[Event]], period_s: float,
) -> Iterator[dict[str, Sequence[Event]]]:
    """Yield a batch in parts: no user's part reaches into a later period than it begins in.

    Args:
        groups: the batch by user, each user's in order of arrival.
    """
    parts: list[dict[str, Sequence[Event]]] = []
    for user, group in groups.items():
        newest = states[user].event_time
        start = turn = 0
        for place, event in enumerate(group):
            if place > start and period(event.event_time, period_s) > period(newest, period_s):
                _put(parts, turn, user, group[start:place])
                start, turn = place, turn + 1
            newest = max(newest, event.event_time)
        _put(parts, turn, user, group[start:])
    yield from parts


def _put(parts: list[dict[str, Sequence[Event]]], turn: int, user: str, events: Sequence[Event]) -> None:
    if turn == len(parts):
        parts.append({})
    parts[turn][user] = events
