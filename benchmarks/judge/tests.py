"""Three tests of margins, compared by the share of users found against the number of events.

`compare` accepts any margins, one array per user, real or simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.judge.margins import Margins
from streams.detection.trust import first_crossings

BETTING, RATIO, WINDOW = "betting (Freshet)", "likelihood ratio", "window mean"
WIDTH = 20
First = NDArray[np.int64]  # (U,) column at which a user is found, −1 = not found


@dataclass(frozen=True)
class Judges:
    """The three tests at one level.

    Args:
        bound: B, nats; the likelihood ratio uses unclipped margins.
        floor: threshold of the window mean, in units of B.
    """

    bound: float
    alpha: float
    floor: float

    @classmethod
    def calibrated(cls, null: Margins, bound: float, alpha: float) -> Judges:
        """Choose the window's floor so that a share α of the users of `null` (U, T) ever falls below it in T events."""
        lowest = _window_means(null, bound).min(axis=1)
        return cls(bound, alpha, float(np.quantile(lowest, alpha, method="lower")))

    def first(self, margins: Margins) -> dict[str, First]:
        """Return when each test finds each user, checked after every event.

        Args:
            margins: (U, T) nats, oldest first; NaN = no event.
        """
        return {
            BETTING: first_crossings(margins, self.bound, self.alpha),
            RATIO: _first(np.cumsum(-np.nan_to_num(margins), axis=1) >= np.log(1 / self.alpha)),
            WINDOW: _first(_window_means(margins, self.bound) < self.floor)}


def compare(judges: Judges, users: Sequence[Sequence[float]] | Margins, at: Sequence[int]) -> dict[str, list[float]]:
    """Return per test the share of users found within each number of events of `at`.

    Args:
        users: margins per user, nats, oldest first, of any length. Users with fewer events are included.
    """
    return {name: shares(first, at) for name, first in judges.first(padded(users)).items()}


def padded(users: Sequence[Sequence[float]] | Margins) -> Margins:
    """Return users' margins as (U, T), NaN after each user's last one."""
    out = np.full((len(users), max((len(user) for user in users), default=0)), np.nan)
    for row, user in zip(out, users, strict=True):
        row[:len(user)] = user
    return out


def shares(first: First, at: Sequence[int]) -> list[float]:
    """Return the share of users found within each number of events."""
    return [round(float(((first >= 0) & (first < events)).mean()), 5) for events in at]


def within(first: First, share: float) -> int | None:
    """Return the number of events until that share of users is found, None = never."""
    rank = int(np.ceil(share * len(first))) - 1
    ordered = np.sort(np.where(first < 0, np.iinfo(np.int64).max, first))
    return int(ordered[rank]) + 1 if ordered[rank] < np.iinfo(np.int64).max else None


def _window_means(margins: Margins, bound: float) -> Margins:
    """Return the means of the newest `WIDTH` margins (U, T); +inf with fewer margins or without an event."""
    clipped = np.clip(margins, -bound, bound) / bound
    total = np.cumsum(np.nan_to_num(clipped), axis=1)
    means = np.full(clipped.shape, np.inf)
    means[:, WIDTH - 1:] = total[:, WIDTH - 1:]
    means[:, WIDTH:] -= total[:, :-WIDTH]
    means /= WIDTH
    means[np.isnan(margins)] = np.inf
    return means


def _first(crossed: NDArray[np.bool_]) -> First:
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1), -1)
