from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.terminal.durations import ago, duration

SIZES = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "days": 86_400.0}


@pytest.mark.parametrize(("seconds", "text"), [
    (None, "–"), (0, "0 ms"), (0.35, "350 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (1.24, "1.2 s"), (90, "90 s"),
    (119.96, "120 s"), (120, "2 min"), (150, "2.5 min"), (5400, "90 min"), (7200, "2 h"), (86_400, "24 h"),
    (129_600, "36 h"), (172_800, "2 days"), (604_800, "7 days"), (86_400 * 12_345.6, "12,346 days"),
    (float("inf"), "inf days")])
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def read(text: str) -> float:
    figure, unit = text.replace(",", "").split()
    return float(figure) * SIZES[unit]


@given(st.floats(0, 1e10))
def test_what_is_shown_is_within_a_twentieth(seconds: float) -> None:
    assert read(duration(seconds)) == pytest.approx(seconds, rel=0.05, abs=0.0005)


@given(st.floats(0, 1e10), st.floats(0, 1e10))
def test_a_longer_duration_is_not_shown_as_shorter(one: float, other: float) -> None:
    assert read(duration(min(one, other))) <= read(duration(max(one, other)))


def test_ages() -> None:
    assert ago(1000.0, 1000.0 - 3 * 86_400) == "3 days ago"
    assert ago(1000.0, 1000.5) == "0 ms ago"
