"""The job of the ingest benchmark, one event at a time. Every peer runs it, and all states are checked against it.

Deduplicate by event id, keep the 50 newest items by event time, update two exponential averages of 64-d item vectors,
and track 1 − cos(short average, anchor) with a CUSUM. The arithmetic is that of `streams.profile.fold`, written for
single events with few numpy calls. Imports only numpy, msgspec and orjson, because the peers run in another
environment.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

HISTORY = 50
EVENT_IDS = 128
SHORT_HALF_LIFE, LONG_HALF_LIFE = 3.0, 30.0
# The constants of the detector are arbitrary, but the same for all systems.
DRIFT_MEAN, DRIFT_SD, DRIFT_PRIOR, DRIFT_SLACK = 0.5, 0.2, 20.0, 0.5
_F4 = np.dtype("<f4")


class State(msgspec.Struct, array_like=True):
    """The state of one user. `interest` is the short and the long average, (2, d) float32."""

    items: list[str] = msgspec.field(default_factory=list)
    times: list[float] = msgspec.field(default_factory=list)
    event_ids: dict[str, int] = msgspec.field(default_factory=dict)
    count: int = 0
    duplicates: int = 0
    too_late: int = 0
    interest: bytes = b""
    cusum: float = 0.0
    drift_n: int = 0
    drift_mean: float = 0.0
    drift_m2: float = 0.0


pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(State).decode


@dataclass(frozen=True)
class ItemIndex:
    """Unit item vectors, the initial anchor of all users, and precomputed values.

    Args:
        rows: item id → row.
        vectors: (n, d) float32.
        anchor: (d,) float32, unit length.
    """

    rows: dict[str, int]
    vectors: NDArray[np.float32]
    anchor: NDArray[np.float32]
    keep: NDArray[np.float32]  # (2, 1)
    steps: NDArray[np.float32]  # (n, 2, d): contribution of an event to both averages
    zero: bytes


def catalogue(path: Path) -> ItemIndex:
    """Return the benchmark's vectors: rows 0 … n−2 are items "i0" …, the last row is the anchor."""
    table = np.load(path)
    vectors, anchor = table[:-1], table[-1]
    keep = np.array([[0.5 ** (1 / SHORT_HALF_LIFE)], [0.5 ** (1 / LONG_HALF_LIFE)]], dtype=_F4)
    steps = np.ascontiguousarray((np.float32(1.0) - keep)[None] * vectors[:, None, :])
    return ItemIndex({f"i{n}": n for n in range(len(vectors))}, vectors, anchor, keep, steps,
                     bytes(2 * 4 * vectors.shape[1]))


def valid(event: object) -> bool:
    """Return whether a decoded JSON value has the required fields of a behaviour event, with the right types."""
    return (isinstance(event, dict)
            and isinstance(event.get("user_id"), str) and isinstance(event.get("item_id"), str)
            and isinstance(event.get("event_id"), str) and isinstance(event.get("event_time"), int | float))


def apply(state: State, item: str, time: float, event_id: str, world: ItemIndex) -> None:
    """Fold one event into its user's state, in place."""
    event_ids, items, times = state.event_ids, state.items, state.times
    if event_id in event_ids:
        state.duplicates += 1
        return
    if len(items) >= HISTORY and time < times[0]:
        state.too_late += 1
        return
    state.count = event_ids[event_id] = state.count + 1
    if len(event_ids) > EVENT_IDS:
        del event_ids[next(iter(event_ids))]
    interest = np.frombuffer(state.interest or world.zero, dtype=_F4).reshape(2, -1)
    late = bool(times) and time < times[-1]
    if late:
        place = bisect_right(times, time)
        interest = _insert(interest, world.rows[item], [world.rows[other] for other in items[place:]], world)
        items.insert(place, item)
        times.insert(place, time)
    else:
        interest = interest * world.keep + world.steps[world.rows[item]]
        items.append(item)
        times.append(time)
    if len(items) > HISTORY:
        del items[0], times[0]
    state.interest = interest.tobytes()
    if not late:
        short = interest[0]
        cosine = float(short @ world.anchor) / sqrt(float(short @ short))
        _watch(state, min(2.0, max(0.0, 1.0 - cosine)))


def _insert(interest: NDArray[np.float32], row: int, after: list[int], world: ItemIndex) -> NDArray[np.float32]:
    """Return both averages as if a late event had arrived in order, before the events `after`."""
    m = len(after)
    keep = world.keep.astype(np.float64)  # (2, 1)
    weights = ((1.0 - keep) * keep ** np.arange(m - 1, -1, -1)).astype(_F4)  # (2, m)
    newer = weights @ world.vectors[after]
    return newer + world.keep * (interest - newer) + (keep**m).astype(_F4) * world.steps[row]


def _watch(state: State, d: float) -> None:
    """Update the CUSUM and the running moments with one distance."""
    n, mean = state.drift_n, state.drift_mean
    weight = DRIFT_PRIOR + n
    mu = (DRIFT_PRIOR * DRIFT_MEAN + n * mean) / weight
    spread = DRIFT_PRIOR * DRIFT_SD**2 + state.drift_m2 + DRIFT_PRIOR * n / weight * (mean - DRIFT_MEAN) ** 2
    sigma = max(sqrt(spread / weight), 0.25 * DRIFT_SD)
    state.cusum = max(0.0, state.cusum + (d - mu) / sigma - DRIFT_SLACK)
    delta = d - mean
    state.drift_n = n + 1
    state.drift_mean = moved = mean + delta / (n + 1)
    state.drift_m2 += delta * (d - moved)
