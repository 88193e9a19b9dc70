"""The two detectors keep their promises: bits, bounds, and false-alarm rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.calibration import thresholds
from streams.detection import drift, trust
from tests.streams.cases import N_ITEMS

DETECTOR = drift.Detector(mean=0.4, sd=0.2, prior=5.0, slack=0.3, threshold=2.0)
DISTANCES = st.lists(st.one_of(st.floats(0, 2), st.just(float("nan"))), max_size=30)


@given(st.lists(DISTANCES, min_size=1, max_size=5), st.floats(0, 20))
def test_update_user_is_bit_identical_to_update(users: list[list[float]], prior: float) -> None:
    detector = drift.Detector(0.4, 0.2, prior, 0.3, 2.0)
    together, alone = drift.DriftColumns.zeros(len(users)), drift.DriftColumns.zeros(len(users))
    for turn in range(max(map(len, users))):
        d = np.array([user[turn] if turn < len(user) else np.nan for user in users])
        drift.update(together, d, detector)
    for index, user in enumerate(users):
        drift.update_user(alone, index, user, detector)
    for name in ("cusum", "n", "mean", "m2", "drifted"):
        np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))


def test_a_lasting_increase_alarms_and_the_usual_level_does_not() -> None:
    rng = np.random.default_rng(1)
    columns = drift.DriftColumns.zeros(2)
    for turn in range(60):
        level = np.array([0.4, 0.4 if turn < 30 else 1.2])
        drift.update(columns, level + rng.normal(0, 0.02, 2), DETECTOR)
    assert columns.drifted.tolist() == [False, True]


def test_distance_of_a_zero_vector_is_no_observation() -> None:
    d = drift.distance(np.array([[1, 0], [0, 0]], np.float32), np.array([[0, 1], [1, 0]], np.float32))
    assert d[0] == 1.0
    assert np.isnan(d[1])


@given(st.lists(st.floats(-10, 10), max_size=40), st.floats(0.1, 5), st.integers(0, 40))
def test_many_margins_at_once_equal_one_at_a_time(margins: list[float], bound: float, cut: int) -> None:
    together = trust.wager([], margins, bound, 0.05)
    head = trust.wager([], margins[:cut], bound, 0.05)
    tail = trust.wager(head[0], margins[cut:], bound, 0.05)
    assert tail[:2] == together[:2]
    first = head[2] if head[2] is not None else None if tail[2] is None else tail[2] + min(cut, len(margins))
    assert first == together[2]


@given(st.floats(-50, 50), st.floats(0.001, 0.5))
def test_trust_is_a_share(log_wealth: float, alpha: float) -> None:
    assert 0.0 <= trust.remaining_share(log_wealth, alpha) <= 1.0
    assert trust.remaining_share(min(log_wealth, 0.0), alpha) == 1.0
    assert trust.remaining_share(np.log(1 / alpha), alpha) == pytest.approx(0.0)


def test_harmless_knowledge_is_contradicted_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(0)
    alpha, users = 0.05, 2000
    skewed = rng.choice([-1.0, 0.25], size=(users, 300), p=[0.2, 0.8])  # mean 0: many small gains, few losses
    wealth = trust.mixture(np.cumsum(trust.bets(skewed.ravel(), 1.0).reshape(users, 300, -1), axis=1))
    assert (wealth.max(axis=1) >= np.log(1 / alpha)).mean() <= alpha


def test_harmful_knowledge_is_found() -> None:
    assert trust.wager([], [-1.0] * 20, 1.0, 0.05)[2] == 9
    assert trust.wager([], [1.0] * 50, 1.0, 0.05)[2] is None


def histories(n: int, length: int, drifting: bool) -> list[thresholds.History]:
    """Return users who like one half of the items; drifting ones change to the other half after a third."""
    rng = np.random.default_rng(5)
    out = []
    for _ in range(n):
        rows = rng.integers(0, N_ITEMS // 2, length)
        if drifting:
            rows[length // 3:] += N_ITEMS // 2
        out.append(thresholds.History(rows, np.arange(length, dtype=float)))
    return out


def test_min_history_is_half_the_median_users_within_bounds() -> None:
    assert thresholds.choose_min_history(histories(5, 12, False)) == 6
    assert thresholds.choose_min_history(histories(5, 1000, False)) == 10
    assert thresholds.choose_min_history([]) == 3


def test_the_margin_bound_detects_harm_with_heavy_tails():
    rng = np.random.default_rng(0)
    # Knowledge helps 60 users and slightly harms 6 on most events; all have rare huge margins.
    helped = [rng.normal(0.1, 0.3, 60) for _ in range(60)]
    harmed = [rng.normal(-0.2, 0.3, 60) for _ in range(6)]
    margins = [np.where(rng.random(60) < 0.03, rng.normal(0, 20, 60), user) for user in (*helped, *harmed)]
    bound, evidence = thresholds.choose_margin_bound(margins)
    assert bound < 1.0, "with a bound near the huge margins, the small ones have no weight"
    contradicted = [trust.wager([], user.tolist(), bound, 0.05)[2] is not None for user in margins]
    assert sum(contradicted[60:]) >= 4
    assert sum(contradicted[:60]) <= 3
    assert evidence["margins"] == 66 * 60
    large = float(np.quantile(np.abs(np.concatenate(margins)), 0.999))
    assert not any(trust.wager([], user.tolist(), large, 0.05)[2] is not None for user in margins)


def test_without_margins_there_is_a_default_bound():
    assert thresholds.choose_margin_bound([])[0] > 0
