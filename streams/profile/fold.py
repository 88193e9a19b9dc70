"""Fold a batch of events into user states: history, deduplication, interests, drift.

Folding a batch gives the same result as folding its events one by one in the same order. Bookkeeping runs per event on
plain lists. The vectors of all users advance together: one numpy step processes the r-th event of every user.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.settings import StateSettings
from schemas.settings.meanings import Meaning, Meanings
from streams.detection.drift import Detector, DriftColumns, distance, update, update_user
from streams.profile.bounds import TRIM_EVERY, mark, remember, trim
from streams.profile.catalogue import ItemVectors
from streams.profile.state import UserState


class Event(msgspec.Struct, gc=False):
    """One behaviour event, in the form the fold needs."""

    user_id: str
    item_id: str
    event_time: float
    event_type: str
    event_id: str
    offset: int  # of the record in the source partition; increases along a user's events
    caused_at: float  # broker timestamp of the record, seconds
    backfill: bool = False


@dataclass(slots=True)
class Touched:
    """The effect of a batch on one user."""

    applied: list[Event] = field(default_factory=list)  # appended to the history, i.e. in order of event time
    replayed: list[Event] = field(default_factory=list)  # duplicates, and events too old to apply
    live: bool = False  # at least one event is not backfill
    caused_at: float = 0.0  # broker timestamp of the newest record in the batch
    duplicates: int = 0
    late: int = 0  # inserted before newer events
    too_late: int = 0  # older than a full history, not applied
    unknown_items: int = 0
    unknown_types: int = 0  # events of a type that the table of meanings lacks
    apart: int = 0  # applied, but no evidence of interest: not in the history
    # What new events add to the popularity of items, where that is not 1 each.
    weights: dict[str, float] = field(default_factory=dict)

    def merged(self, later: Touched) -> Touched:
        """Return the combined effect of this batch and a later one."""
        return Touched(self.applied + later.applied, self.replayed + later.replayed, self.live or later.live,
                       max(self.caused_at, later.caused_at), self.duplicates + later.duplicates,
                       self.late + later.late, self.too_late + later.too_late,
                       self.unknown_items + later.unknown_items, self.unknown_types + later.unknown_types,
                       self.apart + later.apart, _added(self.weights, later.weights))


def _added(weights: dict[str, float], more: Mapping[str, float]) -> dict[str, float]:
    for item, weight in more.items():
        if item in weights or len(weights) < WEIGHTED:
            weights[item] = weights.get(item, 0.0) + weight
    return weights


class _Late(msgspec.Struct, gc=False):
    """A late event: the row of its item and the rows of the events after it."""

    row: int
    after: list[int]


class _TakenBack(msgspec.Struct, gc=False):
    """An event that leaves the history because the user turned against its item: its row, the rows after it."""

    row: int
    after: list[int]


# An event in order (the row of its item), or a change before the newest event, which is no observation of the interest.
Step = int | _Late | _TakenBack

# With at most this many users in a round, numpy's overhead (50 µs) exceeds one Python loop per user (8 µs each).
FEW_USERS = 6
# Items of one user's batch whose weight is passed on: popularity can do without the rest, a request must stay small.
WEIGHTED = 32


def fold(
    states: Mapping[str, UserState], events: Mapping[str, Sequence[Event]], vectors: ItemVectors,
    settings: StateSettings, detector: Detector, meanings: Meanings | None = None, dated: bool = False,
) -> dict[str, Touched]:
    """Fold `events` into `states`, in place.

    Args:
        states: a state for every user of `events`.
        events: the batch by user, each user's in order of arrival.
        meanings: what events mean; None = what their types' names say.
        dated: keep the times of items that leave the history (`Repeats.dated`).

    Returns:
        The effect on each user of `events`.
    """
    meanings = Meanings() if meanings is None else meanings
    touched: dict[str, Touched] = {}
    work: list[tuple[UserState, list[Step]]] = []
    for user, group in events.items():
        state = states[user]
        note = touched[user] = Touched()
        duplicates, late, too_late, unknown = state.duplicates, state.late, state.too_late, state.unknown_items
        steps = _bookkeep(state, group, note, vectors, settings, meanings, dated)
        note.duplicates, note.late = state.duplicates - duplicates, state.late - late
        note.too_late, note.unknown_items = state.too_late - too_late, state.unknown_items - unknown
        if steps:
            work.append((state, steps))
    if work:
        _advance(work, vectors, settings, detector)
    return touched


def _bookkeep(  # noqa: PLR0912, PLR0915 - one loop over every event, in which a call costs as much as the work
    state: UserState, group: Sequence[Event], note: Touched, vectors: ItemVectors, settings: StateSettings,
    meanings: Meanings, dated: bool,
) -> list[Step]:
    """Apply one user's events to everything except the vectors; return the steps that the vectors must take."""
    items, times, types, counts, event_ids = state.items, state.times, state.types, state.counts, state.event_ids
    rows, unknown, limit = vectors.rows, vectors.unknown, settings.history
    steps: list[Step] = []
    newest = times[-1] if times else -1.0
    for event in group:
        meaning = meanings[event.event_type]
        if not event.backfill and (meaning is None or meaning.effect != "neutral"):
            note.live = True
        if event.caused_at > note.caused_at:  # noqa: PLR1730 - a call to max takes longer
            note.caused_at = event.caused_at
        event_id, time = event.event_id, event.event_time
        # An event with an offset and a time not above those of the newest applied event is a redelivery after a crash,
        # even if its id is no longer remembered. (A lower offset with a newer time means the source topic was
        # recreated.)
        if event_id in event_ids or (
                0 <= event.offset <= state.offset and (time <= newest or time <= state.apart_until)):
            state.duplicates += 1
            note.replayed.append(event)
            continue
        if event.offset >= 0:
            state.offset = event.offset
        if (meaning is not None or state.against) and _apart(state, event, note, meaning, vectors, steps):
            event_ids[event_id] = 0  # never judged
            if len(event_ids) > settings.event_ids:
                del event_ids[next(iter(event_ids))]
            if (state.count + state.too_late + state.apart) % TRIM_EVERY == 0:
                trim(state, settings, dated)
            newest = times[-1] if times else -1.0
            continue
        if len(items) >= limit and time < times[0]:
            state.too_late += 1
            remember(state, event.item_id, settings.seen, time if dated else None)
            note.replayed.append(event)
            if (state.count + state.too_late + state.apart) % TRIM_EVERY == 0:
                trim(state, settings, dated)
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
            remember(state, items.pop(0), settings.seen, times[0] if dated else None)
            del times[0], types[0], counts[0]
        if len(event_ids) > settings.event_ids:
            del event_ids[next(iter(event_ids))]
        if (count + state.too_late + state.apart) % TRIM_EVERY == 0:
            trim(state, settings, dated)
    return steps


def _apart(
    state: UserState, event: Event, note: Touched, meaning: Meaning | None, vectors: ItemVectors, steps: list[Step],
) -> bool:
    """Apply what an event means beyond interest; return whether it stays out of the history.

    What the user's earlier events said for an item is taken back by one against it, also if they come after it.

    Args:
        steps: gets the steps of what is taken back.
    """
    item, time = event.item_id, event.event_time
    weight = 1.0
    if meaning is not None:
        weight = meaning.weight
        note.unknown_types += not meaning.known
        if meaning.effect == "taken":
            mark(state.taken, item, time)
        elif meaning.effect == "against":
            mark(state.against, item, time)
            _take_back(state, item, time, vectors, steps)
    against = item in state.against and time <= state.against[item]
    if weight != 1.0 and not event.backfill:
        _added(note.weights, {item: weight})
    if not against and (meaning is None or meaning.evidence):
        return False
    if not state.count and not event.backfill:  # a new user gets a list, whatever they did
        note.live = True
    state.apart += 1
    state.apart_until = max(state.apart_until, time)
    note.apart += 1
    return True


def _take_back(state: UserState, item: str, time: float, vectors: ItemVectors, steps: list[Step]) -> None:
    """Remove the item's events up to `time` from the history."""
    items, times = state.items, state.times
    if item not in items:
        return
    rows, unknown = vectors.rows, vectors.unknown
    for place in range(bisect_right(times, time) - 1, -1, -1):
        if items[place] == item:
            steps.append(_TakenBack(rows.get(item, unknown), [rows.get(one, unknown) for one in items[place + 1:]]))
            del items[place], times[place], state.types[place], state.counts[place]


def _advance(
    work: list[tuple[UserState, list[Step]]], vectors: ItemVectors, settings: StateSettings, detector: Detector,
) -> None:
    """Advance every user's interests and drift statistics by the user's steps."""
    work.sort(key=lambda entry: -len(entry[1]))  # so the users with a step in round r are a prefix
    states = [state for state, _ in work]
    steps = [steps for _, steps in work]
    columns = _Columns(states, vectors, settings, detector)
    alive, turn = len(work), 0
    while alive > FEW_USERS:
        columns.round([user_steps[turn] for user_steps in steps[:alive]])
        turn += 1
        while alive and len(steps[alive - 1]) <= turn:
            alive -= 1
    for index in range(alive):
        columns.run(index, steps[index][turn:])
    columns.store(states)


class _Columns:
    """The vectors and drift statistics of n users as arrays."""

    def __init__(
        self, states: list[UserState], vectors: ItemVectors, settings: StateSettings, detector: Detector,
    ) -> None:
        dim = vectors.dim
        self.vectors = vectors
        self.detector = detector
        self.short, self.long = _gather([s.short for s in states], dim), _gather([s.long for s in states], dim)
        self.anchor = _gather([s.anchor for s in states], dim)
        self.watched = bool(self.anchor.any())
        self.keep = (0.5 ** (1.0 / settings.short_half_life), 0.5 ** (1.0 / settings.long_half_life))
        self.drift = DriftColumns(
            np.array([s.cusum for s in states]), np.array([float(s.drift_n) for s in states]),
            np.array([s.drift_mean for s in states]), np.array([s.drift_m2 for s in states]),
            np.array([s.drifted for s in states]))

    def round(self, steps: list[Step]) -> None:
        """Take one step of each of the first len(steps) users at once."""
        n = len(steps)
        late = [(index, step) for index, step in enumerate(steps) if not isinstance(step, int)]
        before = [(self.short[i].copy(), self.long[i].copy()) for i, _ in late]
        rows = [step if isinstance(step, int) else self.vectors.unknown for step in steps]
        v = self.vectors.vectors[rows]
        for interest, keep in zip((self.short, self.long), self.keep, strict=True):
            interest[:n] *= np.float32(keep)
            interest[:n] += np.float32(1.0 - keep) * v
        for (short, long), (i, step) in zip(before, late, strict=True):
            self.short[i] = _change(short, step, self.keep[0], self.vectors)
            self.long[i] = _change(long, step, self.keep[1], self.vectors)
        if self.watched:
            d = distance(self.short[:n], self.anchor[:n])
            for i, _ in late:  # a late event is no observation of the current interest
                d[i] = np.nan
            update(self.drift, d, self.detector)

    def run(self, index: int, steps: list[Step]) -> None:
        """Take several steps of one user. Same result as rounds with one user; distances are computed at the end."""
        path = np.empty((len(steps), self.vectors.dim), dtype=np.float32)
        short, long = self.short[index], self.long[index]
        (keep_short, keep_long), table = self.keep, self.vectors.vectors
        keeps, gains = (np.float32(keep_short), np.float32(keep_long)), (
            np.float32(1.0 - keep_short), np.float32(1.0 - keep_long))
        for turn, step in enumerate(steps):
            if not isinstance(step, int):
                short[:] = _change(short.copy(), step, keep_short, self.vectors)
                long[:] = _change(long.copy(), step, keep_long, self.vectors)
            else:
                v = table[step]
                short *= keeps[0]
                short += gains[0] * v
                long *= keeps[1]
                long += gains[1] * v
            path[turn] = short
        if self.watched:
            d = distance(path, np.broadcast_to(self.anchor[index], path.shape))
            d[[turn for turn, step in enumerate(steps) if not isinstance(step, int)]] = np.nan
            update_user(self.drift, index, d.tolist(), self.detector)

    def store(self, states: list[UserState]) -> None:
        """Write the columns back into the states."""
        width = 4 * self.vectors.dim
        shorts = self.short.astype("<f4", copy=False).tobytes()
        longs = self.long.astype("<f4", copy=False).tobytes()
        for i, state in enumerate(states):
            state.short = shorts[i * width:(i + 1) * width]
            state.long = longs[i * width:(i + 1) * width]
        if not self.watched:
            return
        drift = self.drift
        for state, cusum, n, mean, m2, drifted in zip(
                states, drift.cusum.tolist(), drift.n.tolist(), drift.mean.tolist(), drift.m2.tolist(),
                drift.drifted.tolist(), strict=True):
            state.cusum, state.drift_n, state.drift_mean, state.drift_m2 = cusum, int(n), mean, m2
            state.drifted = drifted


def _change(
    interest: NDArray[np.float32], late: _Late | _TakenBack, keep: float, vectors: ItemVectors,
) -> NDArray[np.float32]:
    """Return the interest (d,) as if the late event had arrived in order, or one taken back had never come.

    interest = Σ_j (1−a) a^(n−1−j) v_j. Events before the late one move one step back, events after it stay; where one
    is taken back, those before it move one step forward.
    """
    m = len(late.after)
    weights = ((1.0 - keep) * keep ** np.arange(m - 1, -1, -1)).astype(np.float32)
    after = weights @ vectors.vectors[late.after]
    if isinstance(late, _TakenBack):
        own = np.float32((1.0 - keep) * keep**m) * vectors.vectors[late.row]
        return np.asarray(after + (interest - after - own) / np.float32(keep), dtype=np.float32)
    return (after + np.float32(keep) * (interest - after)
            + np.float32((1.0 - keep) * keep**m) * vectors.vectors[late.row])


def _gather(columns: list[bytes], dim: int) -> NDArray[np.float32]:
    """Return the vectors of n users as a writable (n, d) array; a missing vector becomes zeros."""
    empty = bytes(4 * dim)
    # Vectors of a model with another width mean nothing in the new space.
    joined = b"".join([c if len(c) == 4 * dim else empty for c in columns])
    return np.frombuffer(joined, dtype="<f4").reshape(len(columns), dim).copy()
