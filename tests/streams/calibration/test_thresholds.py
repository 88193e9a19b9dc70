"""Thresholds are calibrated on one half of the users and checked on the other, with the planner's own arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from schemas.errors import DataError
from schemas.settings import RefreshSettings, Settings, StateSettings
from streams.calibration import alarms, thresholds
from streams.calibration.rehearsal import answer
from streams.decisions.planner import Planner, States
from streams.detection.drift import Detector
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from tests.streams.cases import CALIBRATION, DIM, N_ITEMS, item_vectors

OPTIONS = {"prior": 1.0, "slack": 0.75, "first": 3}


def population(users: int, length: int, seed: int) -> tuple[list[thresholds.History], ItemVectors]:
    """Return users with different tastes and without drift."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(users):
        taste = rng.dirichlet(np.full(N_ITEMS, 0.3))
        n = int(rng.integers(4, length))
        out.append(thresholds.History(rng.choice(N_ITEMS, n, p=taste), np.arange(n, dtype=float)))
    return out, item_vectors()


@pytest.mark.parametrize("stated", [50.0, 200.0])
def test_the_stated_rate_holds_on_other_users(stated: float) -> None:
    histories, vectors = population(500, 60, 0)
    calibration = thresholds.calibrate_drift(histories, vectors, StateSettings(), false_alarm_every=stated, **OPTIONS)  # type: ignore[arg-type]
    assert calibration.check_passed
    assert calibration.false_alarm_every >= stated
    fresh, _ = population(1500, 60, 1)
    detector = Detector(calibration.mean, calibration.sd, 1.0, 0.75, calibration.threshold)
    seen = alarms.watch([h.rows for h in fresh], vectors, StateSettings(), detector, first=3, cooldown=5)
    expected = float(seen.watched.sum()) / stated
    # Poisson variance of both counts: alarms of the new users, and of one order of the calibration users' items.
    calibration_alarms = calibration.observations / 8 / stated
    bound = 4 * expected * np.sqrt(1 / expected + 1 / calibration_alarms)
    assert abs(len(seen.user) - expected) < bound, (len(seen.user), expected, bound)


def test_a_check_that_finds_too_many_alarms_fails() -> None:
    calm, vectors = population(300, 60, 2)
    calibration = thresholds.calibrate_drift(calm, vectors, StateSettings(), false_alarm_every=100.0, **OPTIONS)  # type: ignore[arg-type]
    assert calibration.check is not None
    assert calibration.check.low < calibration.check.every < calibration.check.high
    low = Detector(calibration.mean, calibration.sd, 1.0, 0.75, calibration.threshold / 3)
    seen = alarms.watch([h.rows for h in calm], vectors, StateSettings(), low, first=3, cooldown=0)
    assert alarms.rate(seen).high < 100.0
    assert not replace(calibration, check=alarms.rate(seen)).check_passed
    assert calibration.evidence()["drift_check_held"] == 1.0


def test_the_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        events = rng.integers(10, 200, 150)
        hazard = rng.gamma(2.0, 0.005, 150)  # users differ, so a Poisson interval is too narrow
        count = rng.poisson(events * hazard)
        seen = alarms.Watched(np.repeat(np.arange(150), count), np.zeros(count.sum(), np.intp), events, 0.5, 0.1)
        interval = alarms.rate(seen)
        covered += interval.low <= 100.0 <= interval.high
    # The expected number is 380; 4 binomial standard deviations are 17.
    assert covered >= 363


def test_without_an_alarm_the_interval_has_only_a_lower_bound() -> None:
    none = np.zeros(0, np.intp)
    interval = alarms.rate(alarms.Watched(none, none, np.array([370, 0]), 0.5, 0.1))
    assert (interval.users, interval.alarms, interval.every, interval.low) == (1, 0, float("inf"), pytest.approx(100.0))


def test_the_two_halves_are_disjoint_and_complete() -> None:
    histories, _ = population(41, 30, 3)
    usable = [h for h in histories if len(h.rows) > 6]
    first, second = thresholds.split_users(histories, 6, 7)
    assert len(first) - len(second) in {0, 1}
    assert sorted(map(id, first + second)) == sorted(map(id, usable))


def test_a_single_user_gives_a_calibration_without_a_check() -> None:
    histories, vectors = population(1, 60, 5)
    calibration = thresholds.calibrate_drift(histories, vectors, StateSettings(), false_alarm_every=50.0, **OPTIONS)  # type: ignore[arg-type]
    assert calibration.check is None
    assert calibration.check_passed
    assert "drift_check_every" not in calibration.evidence()


def test_too_short_histories_raise_a_clear_error() -> None:
    with pytest.raises(DataError, match="more than 100 events"):
        thresholds.calibrate_drift(*population(5, 20, 6), StateSettings(), false_alarm_every=50.0, prior=1.0,
                                    slack=0.75, first=100)


@given(st.data())
@hypothesis_settings(max_examples=30, deadline=None)
def test_watch_gives_the_same_alarms_as_the_planner(data: st.DataObject) -> None:
    """Same alarms at the same events: `watch` steps all users at once, the planner folds batches."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    vectors = item_vectors()
    histories = [rng.integers(0, N_ITEMS + 1, int(n)) for n in rng.integers(1, 40, int(rng.integers(1, 12)))]
    first, cooldown = int(rng.integers(1, 5)), int(rng.integers(0, 6))
    threshold, chunk = float(rng.uniform(0.2, 3.0)), int(rng.integers(1, 9))
    detector = Detector(0.5, 0.2, 1.0, 0.75, threshold)
    seen = alarms.watch(histories, vectors, StateSettings(), detector, first=first, cooldown=cooldown)

    fitted = CALIBRATION.model_copy(update={
        "min_history": first, "ttl_s": 1e12, "drift_prior": 1.0, "drift_slack": 0.75, "drift_threshold": threshold})
    planner = Planner(vectors, fitted, Settings(refresh=RefreshSettings(cooldown=cooldown, policy="drift")))
    states: States = {}
    refreshed = []
    # One event per user and batch, so that knowledge arrives before the user's next event.
    for t in range(max(map(len, histories))):
        users = [u for u, rows in enumerate(histories) if len(rows) > t]
        for start in range(0, len(users), chunk):
            batch = [Event(f"{u}", f"i{histories[u][t]}", float(t), "view", f"{u}-{t}", t, float(t))
                     for u in users[start:start + chunk]]
            plan = planner.events(states, batch, float(t))
            refreshed += [(int(r.user_id), r.count) for r in plan.knowledge if r.reason == "drift"]
            planner.updates(states, [(answer(r), 0.0) for r in plan.knowledge], float(t))
    assert sorted(refreshed) == sorted(zip(seen.user.tolist(), seen.event.tolist(), strict=True))
    assert seen.watched.tolist() == [max(0, len(rows) - first) for rows in histories]


def test_a_planted_drift_is_found() -> None:
    settings, half = StateSettings(), N_ITEMS // 2
    apart = np.repeat(np.eye(2, DIM, dtype=np.float32), half, axis=0)
    vectors = ItemVectors([f"i{n}" for n in range(N_ITEMS)], 2 * apart + item_vectors().vectors[:-1])
    rng = np.random.default_rng(8)
    drifting = [thresholds.History(np.concatenate([rng.integers(0, half, 30), rng.integers(half, N_ITEMS, 60)]),
                                    np.arange(90, dtype=float)) for _ in range(80)]
    calm = [thresholds.History(rng.integers(0, half, 90), np.arange(90, dtype=float)) for _ in range(160)]
    calibration = thresholds.calibrate_drift(calm, vectors, settings, false_alarm_every=300.0, **OPTIONS)  # type: ignore[arg-type]
    detector = Detector(calibration.mean, calibration.sd, 1.0, 0.75, calibration.threshold)
    seen = alarms.watch([h.rows for h in drifting], vectors, settings, detector, first=3, cooldown=5)
    caught = {user for user, event in zip(seen.user, seen.event, strict=True) if 30 < event <= 40}
    assert len(caught) >= 76, "a change to the other half of the catalogue is found within ten events"
