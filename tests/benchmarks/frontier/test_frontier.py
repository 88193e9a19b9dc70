from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.frontier.page import table
from benchmarks.frontier.points import Point, PointFolder, pooled, share_of, versus
from benchmarks.frontier.run import FIELDS, ROOT, compared, results
from workers.replay.record import Columns

N, USERS = 400, 40


def point(policy: str, budget: float | None, gain: float, calls: int, seed: int = 42) -> Point:
    """Return a point where every event gains the same, with noise that is the same for all policies."""
    rng = np.random.default_rng(seed)
    reference = rng.random(N)
    rows = np.stack([np.arange(N), np.arange(N) % USERS, reference + gain + rng.normal(0, 0.01, N), reference])
    figures: dict[str, Any] = dict.fromkeys(FIELDS, 1.0) | {
        "dataset": "made-up", "policy": policy, "budget": budget, "seed": seed, "calls": calls,
        "calls_per_1000": 1000 * calls / N, "revision": "r", "events": N, "predicted": N}
    return Point(figures, rows)


def test_policies_are_compared_event_by_event() -> None:
    better = [point("freshet", 50, 0.05, 20, seed) for seed in (1, 2)]
    worse = [point("drift", 50, 0.02, 21, seed) for seed in (1, 2)]
    comparison = versus(better, worse)
    assert comparison["difference"] == pytest.approx(0.03, abs=0.003)
    assert comparison["interval"][0] > 0.02
    assert comparison["equal_calls"]
    assert not versus(better, [point("once", None, 0.02, 30, s) for s in (1, 2)])["equal_calls"]
    shorter = point("drift", 50, 0.02, 21)
    with pytest.raises(ValueError, match="different events"):
        versus([better[0]], [Point(shorter.figures, shorter.rows[:, 1:])])


def test_the_share_of_a_negative_gain_is_none() -> None:
    kept = share_of([point("freshet", 50, 0.048, 20)], [point("always", None, 0.05, 400)])
    assert kept["share"] == pytest.approx(0.96, abs=0.05)
    assert kept["interval"][0] < 0.96 < kept["interval"][1]
    assert kept["calls_share"] == pytest.approx(0.05)
    assert share_of([point("freshet", 50, 0.05, 20)], [point("always", None, -0.05, 400)])["share"] is None


def test_seeds_are_pooled() -> None:
    row = pooled([point("freshet", 50, 0.04, 20, 1), point("freshet", 50, 0.06, 24, 2)])
    assert row["gain"] == pytest.approx(0.05, abs=0.002)
    assert row["calls_per_1000"] == pytest.approx(55)
    assert row["gain_interval"][0] < row["gain"] < row["gain_interval"][1]


def test_finished_points_are_stored(tmp_path: Path) -> None:
    columns = Columns(np.arange(3), np.array(["b", "a", "b"]), np.array([0.5, 0, 1]), np.zeros(3), np.full(3, np.nan),
                      np.full(3, -1))
    folder = PointFolder(tmp_path / "points")
    assert folder.find("always-42") is None
    folder.keep("always-42", {"policy": "always", "budget": None}, columns)
    stored = PointFolder(tmp_path / "points").find("always-42")
    assert stored is not None
    assert stored.name == ("always", None)
    np.testing.assert_array_equal(stored.rows, [[0, 1, 2], [1, 0, 1], [0.5, 0, 1], [0, 0, 0]])


def test_results_and_tables_are_complete() -> None:
    points = [point("always", None, 0.05, 400), point("never", None, 0, 0), point("freshet", 50, 0.04, 20),
              point("nightly", 50, 0.01, 20), point("freshet", 100, 0.045, 40)]
    rows = results(points, compared(points))
    assert all(set(row) >= {"dataset", "policy", "budget", "seed", "calls_per_1000", "ndcg_at_10", "gain",
                            "gain_interval", "median_age_s", "revision"} for row in rows)
    (first, second) = [row for row in rows if row["policy"] == "freshet"]
    assert set(first["against"]) == {"always", "never", "nightly"}
    assert set(second["against"]) == {"always", "never"}  # there is no point of nightly at that budget
    text = table(points, compared(points))
    assert "| 50 | nightly | 50.0 | +0.03" in text
    assert "above |" in text


@pytest.mark.slow
@pytest.mark.timeout(420)  # 29 s on an idle machine, over 170 s on a busy one
def test_quick_run() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.frontier.run", "--quick"], cwd=ROOT, capture_output=True,
                          text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    for policy in ("never", "once", "always", "nightly", "every-n", "drift", "judge", "freshet"):
        assert f"| {policy} |" in done.stdout
