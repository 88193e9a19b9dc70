"""Bounds of a state in bytes: whatever ids are made of, a state and every request made from it fit into one message.

An id has up to 256 characters, each up to six bytes of JSON (a control character), so the bounds in numbers of
`StateSettings` allow states of many MiB. No broker would take such a state, and its partition could not go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from schemas.settings import StateSettings
from streams.profile.state import UserState

# Bytes of JSON, which are never fewer than those of MessagePack. With what comes in between two trims, the worst
# ranking request (history and seen items, and every event of the history to be judged, with its own id) has 880 kB and
# the worst state 760 kB; streams sends batches of up to 900 kB, and brokers take 1 MiB unless told otherwise. What is
# taken and what the user is against share the room of seen items: 1,000 ids of 36 characters with times take 58 kB.
HISTORY_BYTES = 100_000  # items and types
SEEN_BYTES = 140_000
TAKEN_BYTES, AGAINST_BYTES = 60_000, 60_000
MARKED = 1_000  # items taken, and items against, at most
EVENT_ID_BYTES = 100_000
# Counting costs 12 µs for 1,000 items, so it is not done for every event.
TRIM_EVERY = 32
_LONGEST = 6 * 256 + 3  # an id, with quotes and comma
_LONGEST_TYPE = 6 * 64 + 3
_COUNT = 10  # an event id's number, at most
_TIME = 19  # a time, at most


def remember(state: UserState, item: str, limit: int, time: float | None = None) -> None:
    """Add `item` to the seen items that left the history; drop the oldest if there are more than `limit`.

    Args:
        time: of the item's event, where it is to be kept.
    """
    seen = state.seen
    before = seen.pop(item, None)
    if limit:
        seen[item] = time if before is None or time is None else max(before, time)
        if len(seen) > limit:
            del seen[next(iter(seen))]


def mark(column: dict[str, float], item: str, time: float) -> None:
    """Note an event at `time` that took `item` or was against it; drop the oldest note if there are too many."""
    column[item] = max(time, column.pop(item, time))
    if len(column) > MARKED:
        del column[next(iter(column))]


def trim(state: UserState, settings: StateSettings, dated: bool = False) -> None:
    """Drop the oldest entries of the columns that take more bytes than they may. Items that leave are seen items.

    Args:
        dated: keep the times of items that leave.
    """
    items, types = state.items, state.types
    if len(items) > HISTORY_BYTES // (_LONGEST + _LONGEST_TYPE) and _size(items) + _size(types) > HISTORY_BYTES:
        kept = _newest([item + kind for item, kind in zip(items, types, strict=True)], HISTORY_BYTES, 3)
        gone = len(items) - kept
        for item, time in zip(items[:gone], state.times[:gone], strict=True):
            remember(state, item, settings.seen, time if dated else None)
        del items[:gone], types[:gone], state.times[:gone], state.counts[:gone]
    _trim_keys(state.seen, SEEN_BYTES, _TIME if dated else 0)
    _trim_keys(state.taken, TAKEN_BYTES, _TIME)
    _trim_keys(state.against, AGAINST_BYTES, _TIME)
    _trim_keys(state.event_ids, EVENT_ID_BYTES, _COUNT)


def _trim_keys(column: dict[str, Any], room: int, each: int) -> None:
    if len(column) > room // (_LONGEST + each):
        texts = list(column)
        if _size(texts) + each * len(texts) > room:
            for text in texts[:len(texts) - _newest(texts, room, each)]:
                del column[text]


def _size(texts: Sequence[str]) -> int:
    return len(orjson.dumps(texts))


def _newest(texts: Sequence[str], room: int, each: int) -> int:
    """Return how many of the last texts fit into `room`, at `each` extra bytes."""
    size = 0
    for kept, text in enumerate(reversed(texts)):
        size += len(orjson.dumps(text)) + 1 + each
        if size > room:
            return kept
    return len(texts)
