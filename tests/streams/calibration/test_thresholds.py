"""Calibrated on one half of the users, checked on the other; and what is calibrated is what the planner does."""

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
    """Users who each like some of the items more than others, without any drift."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(users):
        taste = rng.dirichlet(np.full(N_ITEMS, 0.3))
        n = int(rng.integers(4, length))
        out.append(thresholds.History(rng.choice(N_ITEMS, n, p=taste), np.arange(n, dtype=float)))
    return out, item_vectors()


@pytest.mark.parametrize("stated", [50.0, 200.0])
def test_the_stated_rate_holds_on_users_that_calibration_never_saw(stated: float) -> None:
    histories, vectors = population(500, 60, 0)
    found = thresholds.calibrate_drift(histories, vectors, StateSettings(), false_alarm_every=stated, **OPTIONS)  # type: ignore[arg-type]
    assert found.check_passed
    assert found.false_alarm_every >= stated
    fresh, _ = population(1500, 60, 1)
    detector = Detector(found.mean, found.sd, 1.0, 0.75, found.threshold)
    seen = alarms.watch([h.rows for h in fresh], vectors, StateSettings(), detector, first=3, cooldown=5)
    expected = float(seen.watched.sum()) / stated
    # Poisson on both sides: alarms of the fresh users, and those of the calibrating half's one order of items.
    calibrating = found.observations / 8 / stated
    bound = 4 * expected * np.sqrt(1 / expected + 1 / calibrating)
    assert abs(len(seen.user) - expected) < bound, (len(seen.user), expected, bound)


def test_a_check_that_finds_too_many_alarms_fails() -> None:
    calm, vectors = population(300, 60, 2)
    found = thresholds.calibrate_drift(calm, vectors, StateSettings(), false_alarm_every=100.0, **OPTIONS)  # type: ignore[arg-type]
    assert found.check is not None
    assert found.check.low < found.check.every < found.check.high
    low = Detector(found.mean, found.sd, 1.0, 0.75, found.threshold / 3)
    seen = alarms.watch([h.rows for h in calm], vectors, StateSettings(), low, first=3, cooldown=0)
    assert alarms.rate(seen).high < 100.0
    assert not replace(found, check=alarms.rate(seen)).check_passed
    assert found.evidence()["drift_check_held"] == 1.0


def test_the_interval_covers_the_true_rate_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        events = rng.integers(10, 200, 150)
        hazard = rng.gamma(2.0, 0.005, 150)  # users differ: a plain Poisson interval is too short
        count = rng.poisson(events * hazard)
        seen = alarms.Watched(np.repeat(np.arange(150), count), np.zeros(count.sum(), np.intp), events, 0.5, 0.1)
        interval = alarms.rate(seen)
        covered += interval.low <= 100.0 <= interval.high
    # 95% of 400 is 380, and 4 binomial standard deviations are 17.
    assert covered >= 363


def test_without_an_alarm_only_the_lower_end_is_known() -> None:
    none = np.zeros(0, np.intp)
    found = alarms.rate(alarms.Watched(none, none, np.array([370, 0]), 0.5, 0.1))
    assert (found.users, found.alarms, found.every, found.low) == (1, 0, float("inf"), pytest.approx(100.0))


def test_halves_share_no_user_and_leave_none_out() -> None:
    histories, _ = population(41, 30, 3)
    usable = [h for h in histories if len(h.rows) > 6]
    one, other = thresholds.split_users(histories, 6, 7)
    assert len(one) - len(other) in {0, 1}
    assert sorted(map(id, one + other)) == sorted(map(id, usable))


def test_one_user_is_calibrated_on_but_checked_on_nobody() -> None:
    histories, vectors = population(1, 60, 5)
    found = thresholds.calibrate_drift(histories, vectors, StateSettings(), false_alarm_every=50.0, **OPTIONS)  # type: ignore[arg-type]
    assert found.check is None
    assert found.check_passed
    assert "drift_check_every" not in found.evidence()


def test_too_short_histories_are_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="more than 100 events"):
        thresholds.calibrate_drift(*population(5, 20, 6), StateSettings(), false_alarm_every=50.0, prior=1.0,
                                    slack=0.75, first=100)


@given(st.data())
@hypothesis_settings(max_examples=30, deadline=None)
def test_watching_equals_what_the_planner_does(data: st.DataObject) -> None:
    """Same alarms at the same events, bit for bit, though one steps all users at once and the other folds batches."""
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
    found = []
    # An event per user and batch, so that knowledge is there before the user's next event.
    for t in range(max(map(len, histories))):
        users = [u for u, rows in enumerate(histories) if len(rows) > t]
        for start in range(0, len(users), chunk):
            batch = [Event(f"{u}", f"i{histories[u][t]}", float(t), "view", f"{u}-{t}", t, float(t))
                     for u in users[start:start + chunk]]
            plan = planner.events(states, batch, float(t))
            found += [(int(r.user_id), r.count) for r in plan.knowledge if r.reason == "drift"]
            planner.updates(states, [(answer(r), 0.0) for r in plan.knowledge], float(t))
    assert sorted(found) == sorted(zip(seen.user.tolist(), seen.event.tolist(), strict=True))
    assert seen.watched.tolist() == [max(0, len(rows) - first) for rows in histories]


def test_a_planted_drift_is_seen_and_the_true_order_shows_more_alarms_than_the_shuffled() -> None:
    settings, half = StateSettings(), N_ITEMS // 2
    apart = np.repeat(np.eye(2, DIM, dtype=np.float32), half, axis=0)
    vectors = ItemVectors([f"i{n}" for n in range(N_ITEMS)], 2 * apart + item_vectors().vectors[:-1])
    rng = np.random.default_rng(8)
    drifting = [thresholds.History(np.concatenate([rng.integers(0, half, 30), rng.integers(half, N_ITEMS, 60)]),
                                    np.arange(90, dtype=float)) for _ in range(80)]
    calm = [thresholds.History(rng.integers(0, half, 90), np.arange(90, dtype=float)) for _ in range(160)]
    found = thresholds.calibrate_drift(calm, vectors, settings, false_alarm_every=300.0, **OPTIONS)  # type: ignore[arg-type]
    detector = Detector(found.mean, found.sd, 1.0, 0.75, found.threshold)
    seen = alarms.watch([h.rows for h in drifting], vectors, settings, detector, first=3, cooldown=5)
    caught = {user for user, event in zip(seen.user, seen.event, strict=True) if 30 < event <= 40}
    assert len(caught) >= 76, "a change to the other half of the catalogue is seen within ten events"
