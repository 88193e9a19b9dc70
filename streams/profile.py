"""Fold a batch of events into user states: history, dedup, interests, drift.

Folding a batch equals folding its events one by one in the same order. Bookkeeping runs per event on plain lists; the
vectors of all users advance together, the r-th event of every user in one numpy step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.settings import StateSettings
from streams.catalogue import ItemVectors
from streams.drift import Detector, DriftColumns, distance, update
from streams.state import UserState


class Event(msgspec.Struct, gc=False):
    """One behaviour event as the fold wants it."""

    user_id: str
    item_id: str
    event_time: float
    event_type: str
    event_id: str
    offset: int  # of its record in the source partition: rises along a user's events
    caused_at: float  # broker's timestamp of the record, seconds
    backfill: bool = False


@dataclass(slots=True)
class Touched:
    """What a batch did to one user."""

    applied: list[Event] = field(default_factory=list)  # at the end of the history, i.e. in order of event time
    replayed: list[Event] = field(default_factory=list)  # duplicates, and events too old to apply
    live: bool = False  # at least one event is not backfill
    caused_at: float = 0.0  # broker's timestamp of the newest record of the batch


class _Late(msgspec.Struct, gc=False):
    """A late event's place among the interests: its item's row and the rows of the events after it."""

    row: int
    after: list[int]


Step = int | _Late


def fold(
    states: Mapping[str, UserState], events: Mapping[str, Sequence[Event]], vectors: ItemVectors,
    settings: StateSettings, detector: Detector,
) -> dict[str, Touched]:
    """Fold `events` into `states`, in place.

    Args:
        states: a state for every user of `events`.
        events: the batch by user, each user's in order of arrival.

    Returns:
        What was done to each user of `events`.
    """
    touched: dict[str, Touched] = {}
    work: list[tuple[UserState, list[Step]]] = []
    for user, group in events.items():
        state = states[user]
        note = touched[user] = Touched()
        steps = _bookkeep(state, group, note, vectors, settings)
        if steps:
            work.append((state, steps))
    if work:
        _advance(work, vectors, settings, detector)
    return touched


def _bookkeep(
    state: UserState, group: Sequence[Event], note: Touched, vectors: ItemVectors, settings: StateSettings,
) -> list[Step]:
    """Apply one user's events to everything but the vectors; return the steps the vectors have to take."""
    items, times, types, counts, event_ids = state.items, state.times, state.types, state.counts, state.event_ids
    rows, unknown, limit = vectors.rows, vectors.unknown, settings.history
    steps: list[Step] = []
    newest = times[-1] if times else -1.0
    for event in group:
        if not event.backfill:
            note.live = True
        note.caused_at = max(note.caused_at, event.caused_at)
        event_id, time = event.event_id, event.event_time
        # At or below the offset of the newest applied event and not newer than it: the record was folded before the
        # crash that had it delivered again, however long ago its id was forgotten. (A newer time under a lower offset
        # is a source topic made anew.)
        if event_id in event_ids or (0 <= event.offset <= state.offset and time <= newest):
            state.duplicates += 1
            note.replayed.append(event)
            continue
        if event.offset >= 0:
            state.offset = event.offset
        if len(items) >= limit and time < times[0]:
            state.too_late += 1
            _remember(state, event.item_id, settings.seen)
            note.replayed.append(event)
            continue
        state.count = count = state.count + 1
        event_ids[event_id] = count
        row = rows.get(event.item_id, unknown)
        if row == unknown:
            state.unknown_items += 1
        if time >= newest:
            items.append(event.item_id)
            times.append(time)
            types.append(event.event_type)
            counts.append(count)
            newest = time
            state.event_id, state.caused_at = event_id, event.caused_at
            note.applied.append(event)
            steps.append(row)
        else:
            place = bisect_right(times, time)
            steps.append(_Late(row, [rows.get(item, unknown) for item in items[place:]]))
            items.insert(place, event.item_id)
            times.insert(place, time)
            types.insert(place, event.event_type)
            counts.insert(place, count)
            state.late += 1
        if len(items) > limit:
            _remember(state, items.pop(0), settings.seen)
            del times[0], types[0], counts[0]
        if len(event_ids) > settings.event_ids:
            del event_ids[next(iter(event_ids))]
    return steps


def _remember(state: UserState, item: str, limit: int) -> None:
    """Keep `item` among the seen ones that are not in the history any more, the oldest making room."""
    seen = state.seen
    seen.pop(item, None)
    if limit:
        seen[item] = None
        if len(seen) > limit:
            del seen[next(iter(seen))]


def _advance(
    work: list[tuple[UserState, list[Step]]], vectors: ItemVectors, settings: StateSettings, detector: Detector,
) -> None:
    """Take every user's steps with their interests and drift statistics."""
    work.sort(key=lambda entry: -len(entry[1]))  # the users still stepping in round r are then a prefix
    states = [state for state, _ in work]
    dim = vectors.dim
    short, long = _gather([s.short for s in states], dim), _gather([s.long for s in states], dim)
    anchor = _gather([s.anchor for s in states], dim)
    drift = DriftColumns(
        np.array([s.cusum for s in states]), np.array([float(s.drift_n) for s in states]),
        np.array([s.drift_mean for s in states]), np.array([s.drift_m2 for s in states]),
        np.array([s.drifted for s in states]))
    watched = bool(anchor.any())
    keep_short, keep_long = 0.5 ** (1.0 / settings.short_half_life), 0.5 ** (1.0 / settings.long_half_life)
    alive = len(work)
    for turn in range(len(work[0][1])):
        while len(work[alive - 1][1]) <= turn:
            alive -= 1
        late: list[tuple[int, _Late]] = []
        rows = np.empty(alive, dtype=np.intp)
        for index in range(alive):
            step = work[index][1][turn]
            if isinstance(step, _Late):
                late.append((index, step))
                rows[index] = vectors.unknown
            else:
                rows[index] = step
        kept = [(i, short[i].copy(), long[i].copy()) for i, _ in late]
        v = vectors.vectors[rows]
        for interest, keep in ((short, keep_short), (long, keep_long)):
            interest[:alive] *= np.float32(keep)
            interest[:alive] += np.float32(1.0 - keep) * v
        for (i, short_before, long_before), (_, step) in zip(kept, late, strict=True):
            short[i] = _insert(short_before, step, keep_short, vectors)
            long[i] = _insert(long_before, step, keep_long, vectors)
        if watched:
            d = distance(short[:alive], anchor[:alive])
            for i, _ in late:  # a late event says nothing on where the interest is now
                d[i] = np.nan
            update(drift, d, detector)
    _scatter(states, short, long, drift, watched)


def _insert(interest: NDArray[np.float32], late: _Late, keep: float, vectors: ItemVectors) -> NDArray[np.float32]:
    """Return the interest (d,) had the late event come in its place.

    interest = Σ_j (1−a) a^(n−1−j) v_j; events before the place move one further back, those after it stay.
    """
    m = len(late.after)
    weights = ((1.0 - keep) * keep ** np.arange(m - 1, -1, -1)).astype(np.float32)
    after = weights @ vectors.vectors[late.after]
    return (after + np.float32(keep) * (interest - after)
            + np.float32((1.0 - keep) * keep**m) * vectors.vectors[late.row])


def _gather(columns: list[bytes], dim: int) -> NDArray[np.float32]:
    """Return the vectors of n users as a writable (n, d) array; none yet = zeros."""
    empty = bytes(4 * dim)
    # A state from before a model of another width has nothing to say in the new space.
    joined = b"".join([c if len(c) == 4 * dim else empty for c in columns])
    return np.frombuffer(joined, dtype="<f4").reshape(len(columns), dim).copy()


def _scatter(
    states: list[UserState], short: NDArray[np.float32], long: NDArray[np.float32], drift: DriftColumns, watched: bool,
) -> None:
    """Write the columns back into the states."""
    width = 4 * short.shape[1]
    shorts, longs = short.astype("<f4", copy=False).tobytes(), long.astype("<f4", copy=False).tobytes()
    for i, state in enumerate(states):
        state.short = shorts[i * width:(i + 1) * width]
        state.long = longs[i * width:(i + 1) * width]
    if watched:
        for i, values in enumerate(zip(drift.cusum.tolist(), drift.n.tolist(), drift.mean.tolist(), drift.m2.tolist(),
                                       drift.drifted.tolist(), strict=True)):
            state = states[i]
            state.cusum, state.drift_mean, state.drift_m2, state.drifted = values[0], values[2], values[3], values[4]
            state.drift_n = int(values[1])
