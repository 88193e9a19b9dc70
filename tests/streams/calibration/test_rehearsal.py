"""The staleness limit is chosen so that staleness is a minority reason."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.errors import ArtifactError
from streams.calibration.rehearsal import choose_ttl, rehearse
from streams.decisions.planner import Planner
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from tests.streams.cases import CALIBRATION, DIM, N_ITEMS, event, planner


def visits() -> list[Event]:
    """Return 40 users with visits of 30 events, a new interest in each, a day or (10%) three months apart."""
    rng = np.random.default_rng(2)
    out = []
    for user in range(40):
        start = float(user)
        for visit in range(8):
            start += 86_400.0 * (90 if rng.random() < 0.1 else 1)
            half = visit % 2 * (N_ITEMS // 2)
            out.extend(event(len(out) + k, f"u{user}", item=half + int(rng.integers(N_ITEMS // 2)), time=start + k)
                       for k in range(30))
    return sorted(out, key=lambda e: e.event_time)


def stage(ttl: float) -> Planner:
    return planner(CALIBRATION.model_copy(update={"ttl_s": ttl, "drift_threshold": 3.0, "drift_mean": 0.3}))


def test_the_limit_keeps_staleness_a_minority_reason() -> None:
    events = visits()
    ttl, chosen = choose_ttl(events, stage)
    assert 0 < chosen.stale_share <= 0.25
    assert chosen.refreshes["cold_start"] == 40
    assert rehearse(stage(60.0), events).stale_share > 0.25
    assert ttl > 60.0


def test_a_rehearsal_ignores_the_policy_and_budget_in_the_settings() -> None:
    events = visits()[:2000]
    calibration = CALIBRATION.model_copy(update={"drift_threshold": 3.0, "drift_mean": 0.3})
    usual = rehearse(planner(calibration), events)
    assert usual.refreshes["drift"] > 0
    for refresh in ({"policy": "never"}, {"policy": "nightly"}, {"calls_per_1000": 1.0}):
        assert rehearse(planner(calibration, **refresh), events).refreshes == usual.refreshes


def test_without_returning_users_the_limit_is_a_week() -> None:
    ttl, chosen = choose_ttl([event(0)], stage)
    assert ttl == 7 * 86_400.0
    assert not chosen.refreshes
    assert choose_ttl([], stage)[0] == ttl


def test_item_vectors_are_of_length_one_and_an_unknown_item_is_zero() -> None:
    vectors = ItemVectors(["a", "b"], np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(vectors.vectors, [[0.6, 0.8], [0, 0], [0, 0]], atol=1e-6)
    assert vectors.rows.get("c", vectors.unknown) == 2


@pytest.mark.parametrize("bad", [np.zeros((1, DIM)), np.full((2, DIM), np.nan), np.zeros(2)])
def test_invalid_vectors_are_rejected(bad: np.ndarray) -> None:
    with pytest.raises(ArtifactError, match="freshet fit"):
        ItemVectors(["a", "b"], bad)
