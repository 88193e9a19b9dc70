"""The events to play and their order.

A user's decisions depend only on that user's events, so several users can be played together in a *wave*. A wave has at
most one event per user, and each user's events keep their order. The result equals playing one event at a time (margins
up to rounding, because the order of a sum depends on the number of rows in a product).

The price of the policy `freshet` is the exception: it depends on the calls of all users so far. For it, waves are cut
from blocks of a few hundred consecutive events, so that no event moves further than a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.data import dataset as data
from schemas.errors import DataError
from schemas.events import make_event_id
from streams.profile.fold import Event


@dataclass(frozen=True, slots=True)
class Timeline:
    """Events before and after a model's split, in time order. The past is folded, the future is played."""

    past: list[Event]
    future: list[Event]


def timeline(dataset: data.Dataset, split_time: float, events: int = 0) -> Timeline:
    """Return the events up to `split_time` as the past and the first `events` (0 = all) after it as the future.

    Raises:
        DataError: there is no event after the split.
    """
    times = dataset.events.time
    cut = int(np.searchsorted(times, split_time, "right"))
    stop = min(len(times), cut + events) if events else len(times)
    if stop == cut:
        raise DataError(
            f"none of the {len(times):,} events is newer than what the current model was fitted on; fit on a smaller "
            "share (FRESHET_FIT_TRAIN_FRACTION), select a model fitted on this data set (`freshet models`), or add "
            "newer events")
    return Timeline([_event(dataset, row, backfill=True) for row in range(cut)],
                    [_event(dataset, row, backfill=False) for row in range(cut, stop)])


def _event(dataset: data.Dataset, row: int, *, backfill: bool) -> Event:
    events = dataset.events
    user, item = dataset.users[events.user[row]], dataset.items[events.item[row]]
    time, kind = float(events.time[row]), dataset.types[events.type[row]]
    return Event(user, item, time, kind, make_event_id(user, item, time, kind), row, time, backfill)


def waves(events: Sequence[Event], size: int, block: int | None = None) -> Iterator[list[int]]:
    """Yield the places of `events` in waves of at most `size` different users.

    Args:
        block: cut waves from this many consecutive events at a time; None = from all events.
    """
    block = block or max(1, len(events))
    for start in range(0, len(events), block):
        turns: dict[str, int] = {}
        groups: list[list[int]] = []
        for place in range(start, min(start + block, len(events))):
            user = events[place].user_id
            turn = turns.get(user, 0)
            turns[user] = turn + 1
            if turn == len(groups):
                groups.append([])
            groups[turn].append(place)
        for group in groups:
            for first in range(0, len(group), size):
                yield group[first:first + size]
