"""Intervals of differences between click models: bootstrap over users, with the same draw for all seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.ctr.click_models import Auc, logloss
from models.data.dataset import FloatArray, IntArray

DRAWS = 2000
METRICS = ("auc", "logloss")


@dataclass(frozen=True, slots=True)
class ClickRun:
    """The scores of a model on m test samples.

    Args:
        user: (m,) rows.
        score: (m,) logits.
        label: (m,) 1.0 = liked.
    """

    user: IntArray
    score: FloatArray
    label: FloatArray


def compare(
    runs: list[ClickRun], baseline: list[ClickRun], users: int, draws: int = DRAWS,
) -> list[dict[str, float | str]]:
    """Return the mean difference of `runs` minus `baseline` per metric, paired by seed, with a 95% interval.

    Args:
        runs, baseline: one entry per seed, on the same samples.
        users: number of users in the data set.
        draws: bootstrap samples of users.
    """
    rng = np.random.default_rng(0)
    pairs = [[(Auc(run.score, run.label), logloss(run.score, run.label)) for run in pair]
             for pair in zip(runs, baseline, strict=True)]

    def differences(weight: FloatArray) -> list[float]:
        out = []
        for run, (new, old) in zip(runs, pairs, strict=True):
            w = weight[run.user]
            out.append((new[0](w) - old[0](w), float((w * (new[1] - old[1])).sum() / max(w.sum(), 1e-9))))
        return list(np.mean(out, axis=0))

    exact = differences(np.ones(users))
    drawn = np.array([differences(np.bincount(rng.integers(0, users, users), minlength=users).astype(float))
                      for _ in range(draws)])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return [{"metric": metric, "mean": exact[at], "low": float(low[at]), "high": float(high[at])}
            for at, metric in enumerate(METRICS)]
