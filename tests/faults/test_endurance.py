"""The parts of the long runs that decide; the runs themselves are commands (docs/reliability.md)."""

from __future__ import annotations

import itertools
import random
import signal

import pytest

from tests.faults.endurance import gaps, slope


def test_a_leak_has_a_slope_and_noise_has_none():
    rng = random.Random(0)
    steady = [(5.0 * n, 400 + rng.uniform(-3, 3)) for n in range(200)]
    assert abs(slope(steady)) < 20
    leaking = [(time, mb + 100 * time / 3600) for time, mb in steady]
    assert slope(leaking) == pytest.approx(100, abs=20)
    settling = [(time, 400 + min(300.0, 3 * time)) for time, _ in steady]  # grows at first, then no more
    assert abs(slope(settling)) < 20
    assert slope(steady[:9]) == 0.0


def test_the_kill_loop_has_three_parts():
    now, kills = [0.0], []
    for wait, number in gaps("kill-loop", 600.0, random.Random(1), lambda: now[0]):
        now[0] += wait
        if now[0] > 600:
            break
        kills.append((now[0], number))
    first, second, third = ([number for at, number in kills if int(at // 200) == part] for part in range(3))
    assert {signal.SIGINT, signal.SIGTERM} >= set(first)
    assert len(first) >= 5
    assert set(second[1:]) == {signal.SIGTERM}
    assert third.count(signal.SIGKILL) > 60


def test_a_soak_kills_about_once_a_minute():
    waits = [wait for wait, _ in itertools.islice(gaps("soak", 1800.0, random.Random(1)), 100)]
    assert 50 < sum(waits) / 100 < 70
    assert list(gaps("pressure", 300.0, random.Random(1))) == []
