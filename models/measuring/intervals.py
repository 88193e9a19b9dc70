"""Bootstrap over users: the confidence interval of a mean difference per event.

Events of one user are dependent, so users are drawn with replacement, not events. The mean is over events, as in the
metrics: users with more events weigh more.

With several seeds, training varies, too: another seed gives another model. `seeds_interval` adds that variation. Two or
three seeds say little about it, and resampling them would understate it by a third or more, so it enters as Student's t
with their number less one degrees of freedom: 3 seeds that differ widen the interval a lot, and honestly so.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def seeds_interval(
    users: Sequence[npt.ArrayLike], gains: Sequence[FloatArray], *, draws: int = 2000, seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return the mean gain per event, averaged over seeds, and an interval over users and training.

    Args:
        users: for each seed, the user (m,) of each event; the same users may have other events with another seed.
        gains: for each seed, the difference (m,) between two scorers' figures on these events.
    """
    if not gains or not all(len(gain) for gain in gains):
        return 0.0, 0.0, 0.0
    if len(gains) == 1:
        return paired_interval(users[0], gains[0], draws=draws, seed=seed, level=level)
    _, place = np.unique(np.concatenate([np.asarray(user) for user in users]), return_inverse=True)
    parts = np.split(place, np.cumsum([len(gain) for gain in gains])[:-1])
    n = int(place.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), draws)
    each = np.array([gain.mean() for gain in gains])
    means = np.mean([
        (drawn @ np.bincount(part, gain, n)) / np.maximum(drawn @ np.bincount(part, minlength=n), 1)
        for part, gain in zip(parts, gains, strict=True)], axis=0)
    training = each.std(ddof=1) / np.sqrt(len(each)) * rng.standard_t(len(each) - 1, draws)
    low, high = np.quantile(means + training, [(1 - level) / 2, (1 + level) / 2])
    return float(each.mean()), float(low), float(high)
