import numpy as np
import pytest

from benchmarks.ctr.click_models import auc
from benchmarks.ctr.intervals import ClickRun, compare


def outcome(noise, seed):
    rng = np.random.default_rng(seed)
    user = np.repeat(rng.permutation(200)[:40], 12)
    label = rng.integers(0, 2, len(user)) * 1.0
    return ClickRun(user, label + rng.normal(0, noise, len(user)), label)


def test_a_better_model_has_a_clear_lead_and_an_equal_one_none():
    good, bad = ([outcome(noise, seed) for seed in (1, 2)] for noise in (0.7, 3.0))
    rows = {row["metric"]: row for row in compare(good, bad, 200, draws=200)}
    exact = np.mean([auc(a.score, a.label) - auc(b.score, b.label) for a, b in zip(good, bad, strict=True)])
    assert rows["auc"]["mean"] == pytest.approx(exact)
    assert 0 < rows["auc"]["low"] < exact < rows["auc"]["high"]
    assert rows["logloss"]["high"] < 0
    for row in compare(good, good, 200, draws=20):
        assert row["mean"] == row["low"] == row["high"] == 0
