"""Replay the drift detector on histories, with the same arithmetic as streams, for all users at once.

Knowledge is generated after a user's first `first` events and at each drift alarm, for no other reason and without
delay. This is what the planner does with the policy `drift` (a test compares the two event by event). So a threshold
calibrated here behaves the same in streams, including unnecessary refreshes that move the anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.settings import StateSettings
from streams.detection.drift import Detector, DriftColumns, distance, update
from streams.profile.catalogue import ItemVectors

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Watched:
    """Alarms and observations of the detector.

    Args:
        user: (alarms,) index of the history of each alarm.
        event: (alarms,) number of the event at each alarm, from 1.
        watched: (users,) number of observed events of each history: those after the first `first`.
        mean, sd: mean and standard deviation of all distances d; NaN if there are none.
    """

    user: Rows
    event: Rows
    watched: Rows
    mean: float
    sd: float

    def per_user(self) -> Rows:
        """Return the number of alarms of each history, (users,)."""
        return np.bincount(self.user, minlength=len(self.watched))


def watch(
    histories: Sequence[Rows], vectors: ItemVectors, settings: StateSettings, detector: Detector, *, first: int,
    cooldown: int,
) -> Watched:
    """Return the alarms on `histories` of item rows, oldest first.

    Args:
        first: events before a user's first knowledge, at least 1.
        cooldown: minimum number of a user's events between two refreshes.
    """
    lengths = np.array([len(rows) for rows in histories], dtype=np.intp)
    order = np.argsort(-lengths, kind="stable")  # so the users with more than t events are a prefix
    sorted_lengths = lengths[order]
    n, longest = len(order), int(lengths.max(initial=0))
    padded = np.full((n, longest), vectors.unknown, dtype=np.intp)
    for place, user in enumerate(order.tolist()):
        padded[place, :lengths[user]] = histories[user]
    short, long = np.zeros((n, vectors.dim), np.float32), np.zeros((n, vectors.dim), np.float32)
    anchor, last = short.copy(), np.full(n, first)
    keeps = (0.5 ** (1.0 / settings.short_half_life), 0.5 ** (1.0 / settings.long_half_life))
    drift = DriftColumns.zeros(n)
    users, events, total, square, seen = [], [], 0.0, 0.0, 0
    for t in range(1, longest + 1):
        alive = int(np.searchsorted(-sorted_lengths, -t, side="right"))
        v = vectors.vectors[padded[:alive, t - 1]]
        for interest, keep in ((short, keeps[0]), (long, keeps[1])):
            interest[:alive] *= np.float32(keep)
            interest[:alive] += np.float32(1.0 - keep) * v
        if t < first:
            continue
        if t == first:
            anchor[:alive] = long[:alive]
            continue
        d = distance(short[:alive], anchor[:alive])
        update(drift, d, detector)
        valid = d[~np.isnan(d)]
        total, square, seen = total + float(valid.sum()), square + float((valid**2).sum()), seen + len(valid)
        refreshed = np.flatnonzero(drift.drifted[:alive] & (t - last[:alive] >= cooldown))
        if len(refreshed):
            users.append(order[refreshed])
            events.append(np.full(len(refreshed), t))
            anchor[refreshed], last[refreshed] = long[refreshed], t
            drift.cusum[refreshed], drift.drifted[refreshed] = 0.0, False
    mean = total / seen if seen else float("nan")
    sd = float(np.sqrt(max(0.0, square / seen - mean**2))) if seen else float("nan")
    none = np.zeros(0, np.intp)
    return Watched(
        np.concatenate([none, *users]), np.concatenate([none, *events]), np.maximum(lengths - first, 0), mean, sd)


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of alarms: one per `every` events of a user, with a confidence interval from `low` to `high`.

    All three have the same unit. Without any alarm, `every` and `high` are infinite.
    """

    users: int
    events: int
    alarms: int
    every: float
    low: float
    high: float


def rate(watched: Watched, copies: int = 1, *, extra_variance: float = 0.0, z: float = 1.96) -> Rate:
    """Return the rate of alarms with its confidence interval; users are independent, events are not.

    The variance of log(alarms per event) is the delta-method variance of a ratio of sums over users (Cochran, "Sampling
    techniques", 1977, ch. 6), at least that of a Poisson count, 1/alarms. Without an alarm the interval is the Poisson
    bound for −ln(0.025) = 3.7 expected alarms.

    Args:
        copies: number of shuffles of each user in the histories, one block of users after the other; the copies of a
            user count as one.
        extra_variance: additional variance of the log rate, from the calibration of the threshold.
        z: standard normal quantile; 1.96 for 95%.
    """
    alarms = watched.per_user().reshape(copies, -1).sum(axis=0).astype(float)
    events = watched.watched.reshape(copies, -1).sum(axis=0).astype(float)
    users, total, exposed = int((events > 0).sum()), float(alarms.sum()), float(events.sum())
    if not total:
        return Rate(users, int(exposed), 0, float("inf"), exposed / copies / 3.7, float("inf"))
    spread = z * float(np.sqrt(log_variance(alarms, events, copies) + extra_variance))
    every = exposed / total
    return Rate(users, int(exposed), int(total), every, every * np.exp(-spread), every * np.exp(spread))


def log_variance(alarms: Floats, events: Floats, copies: int = 1) -> float:
    """Return the variance of log(Σ alarms / Σ events) over users, each (users,) with at least one alarm."""
    total = float(alarms.sum())
    residual = alarms - events * (total / float(events.sum()))
    clusters = max(2, int((events > 0).sum()))
    return max(float((residual**2).sum()) / total**2 * clusters / (clusters - 1), 1.0 / total if copies == 1 else 0.0)
