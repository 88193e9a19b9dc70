"""Intervals of a mean difference of two scorers: users are drawn with replacement, not events."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def paired_interval(
    diffs_by_user: list[npt.NDArray[np.float64]] | dict[str, npt.NDArray[np.float64]], seed: int = 0,
    draws: int = 2000, level: float = 0.95,
) -> tuple[float, float]:
    """Return the bootstrap interval of a mean difference of two scorers, users drawn with replacement.

    A user's events depend on each other, so users are drawn, not events; the mean is over events (large users weigh
    more), as in the metrics themselves.

    Args:
        diffs_by_user: per user, fused − reference of each of his events.

    Returns:
        Percentile bounds; (0, 0) where there is no event.
    """
    values = list(diffs_by_user.values()) if isinstance(diffs_by_user, dict) else diffs_by_user
    sums = np.array([float(np.sum(user)) for user in values if len(user)])
    counts = np.array([len(user) for user in values if len(user)], dtype=np.float64)
    if not len(sums):
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    means = (weights @ sums) / (weights @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
