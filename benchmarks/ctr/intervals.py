"""Intervals of the click models' differences: users are drawn with replacement, all seeds' tests with the same draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.ctr.click_models import Auc, logloss
from models.data.dataset import FloatArray, IntArray

DRAWS = 2000
METRICS = ("auc", "logloss")


@dataclass(frozen=True, slots=True)
class ClickRun:
    """What a model gave m test samples.

    Args:
        user: (m,) rows.
        score: (m,) logits.
        label: (m,) 1.0 = liked.
    """

    user: IntArray
    score: FloatArray
    label: FloatArray


def compare(of: list[ClickRun], over: list[ClickRun], users: int, draws: int = DRAWS) -> list[dict[str, float | str]]:
    """Return per metric the mean difference of `of` to `over`, seed by seed on the same samples, with a 95% interval.

    Args:
        of, over: one entry per seed.
        users: number of users of the data set.
        draws: of users with replacement.
    """
    rng = np.random.default_rng(0)
    pairs = [[(Auc(one.score, one.label), logloss(one.score, one.label)) for one in pair]
             for pair in zip(of, over, strict=True)]

    def differences(weight: FloatArray) -> list[float]:
        found = []
        for one, (new, old) in zip(of, pairs, strict=True):
            each = weight[one.user]
            found.append((new[0](each) - old[0](each), float((each * (new[1] - old[1])).sum() / max(each.sum(), 1e-9))))
        return list(np.mean(found, axis=0))

    exact = differences(np.ones(users))
    drawn = np.array([differences(np.bincount(rng.integers(0, users, users), minlength=users).astype(float))
                      for _ in range(draws)])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return [{"metric": metric, "mean": exact[at], "low": float(low[at]), "high": float(high[at])}
            for at, metric in enumerate(METRICS)]
