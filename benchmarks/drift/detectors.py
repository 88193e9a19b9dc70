"""The detectors that benchmarks/drift/run.py compares, each with one threshold to sweep, all in the same closed loop.

The loop is that of streams: knowledge after `first` events, with the long interest at that time as its anchor. An alarm
after the cooldown leads to new knowledge with a new anchor. Freshet's CUSUM runs in `streams.calibration.alarms.watch`.
The others see the same distances d = 1 − cos(short, anchor), until their alarms and so their anchors differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.drift.streams import interest_paths
from schemas.settings import StateSettings
from streams.calibration.alarms import Rows, Watched, watch
from streams.detection.drift import Detector, distance
from streams.profile.catalogue import ItemVectors

COOLDOWN = 5
AHEAD = 48  # number of distances computed at a time


@dataclass(frozen=True)
class Histories:
    """Histories and their interests, computed once for all detectors."""

    rows: Sequence[Rows]
    vectors: ItemVectors
    first: int
    settings: StateSettings = field(default_factory=StateSettings)
    paths: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[Rows], vectors: ItemVectors, first: int) -> Histories:
        settings = StateSettings()
        return cls(rows, vectors, first, settings, [interest_paths(r, vectors, settings) for r in rows])


@dataclass(frozen=True)
class Kind:
    """A detector in which only the threshold varies. A larger `strictness`, 0 to 1, gives fewer alarms.

    Args:
        threshold: maps a strictness to the detector's own parameter.
        run: returns the alarms on histories for a value of that parameter.
    """

    family: str
    title: str
    parameters: dict[str, Any]
    threshold: Callable[[float], float]
    run: Callable[[Histories, float], Watched]

    def at(self, histories: Histories, strictness: float) -> Watched:
        return self.run(histories, self.threshold(strictness))


def _logspace(low: float, high: float) -> Callable[[float], float]:
    return lambda strictness: float(low * (high / low) ** strictness)


def cusum(moments: tuple[float, float], prior: float, slack: float, title: str = "CUSUM") -> Kind:
    """Freshet's CUSUM: the user's mean and sd, kept across refreshes, shrunk to the population's (`prior` events)."""

    def run(histories: Histories, h: float) -> Watched:
        return watch(histories.rows, histories.vectors, histories.settings, Detector(*moments, prior, slack, h),
                     first=histories.first, cooldown=COOLDOWN)

    return Kind("cusum", title, {"prior": prior, "slack": slack}, _logspace(0.3, 60.0), run)


def page_hinkley(sd: float, minimum: int, slack: float) -> Kind:
    """river's Page–Hinkley, for increases only; `slack` is delta in population sd. It resets at an alarm."""
    from river.drift import PageHinkley

    def make(threshold: float) -> Callable[[float], bool]:
        detector = PageHinkley(min_instances=minimum, delta=slack * sd, threshold=threshold, mode="up")

        def step(d: float) -> bool:
            detector.update(d)
            return detector.drift_detected

        return step

    return Kind("page_hinkley", "Page–Hinkley (river)", {"min_instances": minimum, "delta_sd": slack},
                _logspace(0.1 * sd, 60.0 * sd), lambda histories, value: _loop(histories, lambda: make(value)))


def adwin(scale: float, grace: int, *, keep: bool) -> Kind:
    """river's ADWIN, tested after every event; a decrease of its mean is not an alarm.

    Args:
        scale: factor for d. ADWIN's bound has a term for the range, assumed to be 1, and one for the variance; with
            1/sd the variance term dominates.
        grace: events before the first test.
        keep: keep the window across refreshes.
    """
    from river.drift import ADWIN

    def make(delta: float) -> Callable[[float], bool]:
        detector = ADWIN(delta=delta, clock=1, min_window_length=2, grace_period=grace)

        def step(d: float) -> bool:
            before = detector.estimation
            detector.update(d * scale)
            return detector.drift_detected and detector.estimation > before

        return step

    # The bound contains log(2 ln n / δ), so δ above 2 is meaningless for short windows.
    return Kind("adwin", "ADWIN (river)", {"scale": round(scale, 2), "grace_period": grace, "keep": keep},
                lambda strictness: float(2.0 * (1e-7 / 2.0) ** strictness),
                lambda histories, value: _loop(histories, lambda: make(value), keep=keep))


def level() -> Kind:
    """The baseline: d above a fixed level, without memory."""
    return Kind("level", "d above a level", {}, lambda strictness: float(0.1 + 1.4 * strictness),
                lambda histories, value: _loop(histories, lambda: lambda d: d > value))


def _loop(histories: Histories, make: Callable[[], Callable[[float], bool]], *, keep: bool = True) -> Watched:
    """Run a detector on one user after the other; `keep`: use the same detector after a refresh."""
    users, events = [], []
    first = histories.first
    for user, (short, long) in enumerate(histories.paths):
        n, t, step = len(short), first, make()
        while t < n:  # after t events there is new knowledge
            anchor, last, drifted = long[t - 1], t, False
            while t < n:
                stretch = short[t:t + AHEAD]
                refreshed = False
                for d in distance(stretch, np.broadcast_to(anchor, stretch.shape)).tolist():
                    t += 1
                    drifted = (d == d and step(d)) or drifted  # noqa: PLR0124 - NaN is no observation
                    if drifted and t - last >= COOLDOWN:
                        users.append(user)
                        events.append(t)
                        refreshed = True
                        break
                if refreshed:
                    if not keep:
                        step = make()
                    break
    watched = np.array([max(0, len(short) - first) for short, _ in histories.paths])
    return Watched(np.array(users, dtype=np.intp), np.array(events, dtype=np.intp), watched, float("nan"), float("nan"))


def delays(seen: Watched, change: np.ndarray) -> np.ndarray:
    """Return the number of events from each planted change to the first alarm after it, inf if there is none."""
    out = np.full(len(change), np.inf)
    late = seen.event - change[seen.user]
    np.minimum.at(out, seen.user[late > 0], late[late > 0])
    return out
