"""Bootstrap over users: the confidence interval of a mean difference per event.

Events of one user are dependent, so users are drawn with replacement, not events. The mean is over events, as in the
metrics: users with more events weigh more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.data.dataset import FloatArray, IntArray


def resampled(user: npt.ArrayLike, draws: int = 2000, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Return how often each user is drawn.

    Args:
        user: (m,) the user of each event, by number or name.

    Returns:
        The index of each event's user among all users (m,), and how often each draw has each user (draws, users).
    """
    _, place = np.unique(np.asarray(user), return_inverse=True)
    if not len(place):
        return place, np.zeros((draws, 0), np.int64)
    users = int(place.max()) + 1
    return place, np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), draws)


def paired_interval(
    user: npt.ArrayLike, gain: FloatArray, *, draws: int = 2000, seed: int = 0, level: float = 0.95,
) -> tuple[float, float, float]:
    """Return the mean gain per event and its percentile interval; (0, 0, 0) without events.

    Args:
        user: (m,) the user of each event.
        gain: (m,) difference between two scorers' figures on the same event.
    """
    if not len(gain):
        return 0.0, 0.0, 0.0
    place, drawn = resampled(user, draws, seed)
    sums, counts = np.bincount(place, gain), np.bincount(place).astype(float)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [(1 - level) / 2, (1 + level) / 2])
    return float(sums.sum() / counts.sum()), float(low), float(high)
