"""Three ways to judge margins, and how soon each finds what: curves of the share of users found against events.

`compare` takes any margins, one array per user, so that real ones can be put where simulated ones are.
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
First = NDArray[np.int64]  # (U,) column at which a user is found, −1 = not


@dataclass(frozen=True)
class Judges:
    """The three tests at one level.

    Args:
        bound: B, nats; the likelihood ratio takes margins as they are.
        floor: the window mean is low below this, in units of B.
    """

    bound: float
    alpha: float
    floor: float

    @classmethod
    def calibrated(cls, null: Margins, bound: float, alpha: float) -> Judges:
        """Choose the window's floor: the share of users of `null` (U, T) ever below it within T events is α."""
        lowest = _window_means(null, bound).min(axis=1)
        return cls(bound, alpha, float(np.quantile(lowest, alpha, method="lower")))

    def first(self, margins: Margins) -> dict[str, First]:
        """Return when each test finds each user, looking after every event.

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
        users: margins in nats per user, oldest first; of any lengths. Whoever had fewer events counts all the same.
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
    """Return within how many events that share of users is found, None = never."""
    rank = int(np.ceil(share * len(first))) - 1
    found = np.sort(np.where(first < 0, np.iinfo(np.int64).max, first))
    return int(found[rank]) + 1 if found[rank] < np.iinfo(np.int64).max else None


def _window_means(margins: Margins, bound: float) -> Margins:
    """Return the means of the newest `WIDTH` margins (U, T); +inf where there are not as many, or no event."""
    clipped = np.clip(margins, -bound, bound) / bound
    total = np.cumsum(np.nan_to_num(clipped), axis=1)
    means = np.full(clipped.shape, np.inf)
    means[:, WIDTH - 1:] = total[:, WIDTH - 1:]
    means[:, WIDTH:] -= total[:, :-WIDTH]
    means /= WIDTH
    means[np.isnan(margins)] = np.inf
    return means


def _first(found: NDArray[np.bool_]) -> First:
    return np.where(found.any(axis=1), found.argmax(axis=1), -1)
