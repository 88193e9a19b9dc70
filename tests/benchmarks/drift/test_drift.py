"""The benchmark's loop equals that of streams, planted changes are in the right place, delays are counted correctly."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.drift.detectors import Histories, _loop, cusum, delays
from benchmarks.drift.streams import made_up, plant, shuffles
from streams.calibration.alarms import Watched
from streams.detection.drift import Detector, DriftColumns, update_user

MOMENTS = (0.45, 0.2)


@pytest.mark.parametrize("threshold", [1.0, 4.0])
def test_the_common_loop_gives_the_same_alarms_as_the_planner_loop(threshold: float) -> None:
    population = made_up(3)
    rows = shuffles(population.others[:40], population.first, 0)
    histories = Histories.of(rows, population.vectors, population.first)
    ours = cusum(MOMENTS, 1.0, 0.75).run(histories, threshold)

    def make():  # type: ignore[no-untyped-def]
        columns = DriftColumns.zeros(1)
        detector = Detector(*MOMENTS, 1.0, 0.75, threshold)
        state = {"drifted": False, "since": 0}

        def step(d: float) -> bool:
            # The loop refreshes on the first alarm that the cooldown allows; the CUSUM then restarts.
            if state["drifted"] and state["since"] >= 5:
                columns.cusum[0], columns.drifted[0] = 0.0, False
                state.update(drifted=False, since=0)
            update_user(columns, 0, [d], detector)
            state["since"] += 1
            state["drifted"] = bool(columns.drifted[0])
            return bool(columns.drifted[0])

        return step

    theirs = _loop(histories, make)
    assert len(ours.user) > 10
    assert sorted(zip(ours.user.tolist(), ours.event.tolist(), strict=True)) == list(
        zip(theirs.user.tolist(), theirs.event.tolist(), strict=True))
    assert ours.watched.tolist() == theirs.watched.tolist()


def test_planted_changes_join_two_users() -> None:
    population = made_up(1)
    changes = plant(population, population.others, 50, least=3, seed=2)
    owners = [set(h.rows.tolist()) for h in population.others]
    for rows, cut in zip(changes.rows, changes.change, strict=True):
        assert population.first + 3 <= cut <= population.first + 100
        assert len(rows) == cut + population.tail
        assert any(set(rows[:cut].tolist()) <= owner for owner in owners)
        assert any(set(rows[cut:].tolist()) <= owner for owner in owners)


def test_delays_count_from_the_change_and_ignore_earlier_alarms() -> None:
    seen = Watched(np.array([0, 0, 1, 2, 2]), np.array([10, 13, 9, 15, 12]), np.array([20, 20, 20, 20]), 0.5, 0.1)
    assert delays(seen, np.array([10, 10, 10, 10])).tolist() == [3.0, np.inf, 2.0, np.inf]
