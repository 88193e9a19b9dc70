"""Detect that a user's interest has drifted from the interest their knowledge was generated for.

After each event, d_t = 1 − cos(short_t, anchor). A one-sided CUSUM (Page, "Continuous inspection schemes", Biometrika
1954) sums how far d exceeds the user's usual level: S_t = max(0, S_{t−1} + (d_t − μ)/σ − slack), alarm when S_t > h.
μ and σ² are the running mean and variance of the user's own d before t, shrunk towards the population's by a prior
worth `drift_prior` events. The alarm lasts until new knowledge resets S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, sqrt

import numpy as np
from numpy.typing import NDArray

from schemas.calibration import Calibration
from schemas.settings import RefreshSettings

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Detector:
    """The constants of the CUSUM; see Calibration for their meaning and units."""

    mean: float
    sd: float
    prior: float
    slack: float
    threshold: float

    @classmethod
    def of(cls, calibration: Calibration, settings: RefreshSettings) -> Detector:
        """Return the calibrated detector; a threshold in the settings overrides the calibrated one."""
        threshold = settings.drift_threshold
        return cls(calibration.drift_mean, calibration.drift_sd, calibration.drift_prior, calibration.drift_slack,
                   calibration.drift_threshold if threshold is None else threshold)


@dataclass(slots=True)
class DriftColumns:
    """Drift statistics of n users as columns, each (n,): cusum, number, mean and summed squared deviations of d."""

    cusum: Floats
    n: Floats
    mean: Floats
    m2: Floats
    drifted: NDArray[np.bool_]

    @classmethod
    def zeros(cls, n: int) -> DriftColumns:
        """Return the statistics of n users without an observation."""
        return cls(np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n, dtype=bool))


def distance(short: NDArray[np.float32], anchor: NDArray[np.float32]) -> Floats:
    """Return 1 − cos of the rows of two (n, d) arrays, (n,) in [0, 2]; NaN where a row is zero."""
    dot = np.einsum("ij,ij->i", short, anchor).astype(np.float64)
    square = (np.einsum("ij,ij->i", short, short).astype(np.float64)
              * np.einsum("ij,ij->i", anchor, anchor).astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(1.0 - dot / np.sqrt(square), 0.0, 2.0)


def update(columns: DriftColumns, d: Floats, detector: Detector) -> None:
    """Add one observation of each of the first len(d) users to `columns`, in place.

    Args:
        d: distances; NaN = no observation for that user.
    """
    m = len(d)
    n, mean, m2, cusum = columns.n[:m], columns.mean[:m], columns.m2[:m], columns.cusum[:m]
    seen = ~np.isnan(d)
    value = np.where(seen, d, 0.0)
    weight = detector.prior + n
    with np.errstate(invalid="ignore", divide="ignore"):
        mu = np.where(weight > 0, (detector.prior * detector.mean + n * mean) / weight, detector.mean)
        # The prior's squared deviations, the user's, and what separates their means (Chan et al., 1979).
        spread = (detector.prior * detector.sd**2 + m2
                  + np.where(weight > 0, detector.prior * n / weight, 0.0) * (mean - detector.mean) ** 2)
        variance = np.where(weight > 0, spread / weight, detector.sd**2)
    # If a user's d hardly varies, tiny changes must not alarm: σ is at least a quarter of the population's.
    sigma = np.maximum(np.sqrt(variance), 0.25 * detector.sd)
    stepped = np.maximum(0.0, cusum + (value - mu) / sigma - detector.slack)
    np.copyto(cusum, stepped, where=seen)
    columns.drifted[:m] |= seen & (stepped > detector.threshold)
    delta = value - mean
    number = n + 1.0
    moved = mean + delta / number
    np.copyto(m2, m2 + delta * (value - moved), where=seen)
    np.copyto(mean, moved, where=seen)
    np.copyto(n, number, where=seen)


def update_user(columns: DriftColumns, index: int, distances: Sequence[float], detector: Detector) -> None:
    """Add several observations of one user, in order. Bit-identical to `update`, in plain floats.

    One observation takes 1 µs, with `update` 30 µs.
    """
    cusum, n = float(columns.cusum[index]), float(columns.n[index])
    mean, m2 = float(columns.mean[index]), float(columns.m2[index])
    prior, floor = detector.prior, 0.25 * detector.sd
    prior_sum, prior_square = prior * detector.mean, prior * detector.sd**2
    for value in distances:
        if isnan(value):
            continue
        weight = prior + n
        if weight > 0:
            mu = (prior_sum + n * mean) / weight
            sigma = sqrt((prior_square + m2 + prior * n / weight * (mean - detector.mean) ** 2) / weight)
        else:
            mu, sigma = detector.mean, detector.sd
        cusum = max(0.0, cusum + (value - mu) / max(sigma, floor) - detector.slack)
        if cusum > detector.threshold:
            columns.drifted[index] = True
        delta = value - mean
        n += 1.0
        mean += delta / n
        m2 += delta * (value - mean)
    columns.cusum[index], columns.n[index], columns.mean[index], columns.m2[index] = cusum, n, mean, m2
