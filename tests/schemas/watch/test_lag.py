"""Lag in seconds: the age of the oldest record that waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.watch.lag import KEPT, LagAge, PartitionLags


def test_nothing_waits() -> None:
    age = LagAge()
    assert [age.seconds(end, end, now) for end, now in ((0, 0.0), (5, 10.0), (5, 3600.0))] == [0.0, 0.0, 0.0]


def test_a_record_after_an_idle_hour_is_as_old_as_it_is() -> None:
    """By the newest finished record it would be an hour old."""
    age = LagAge()
    age.seconds(7, 7, 0.0)
    age.seconds(7, 7, 3600.0)
    assert 0.0 <= age.seconds(7, 8, 3605.0, done_age=3605.0) <= 5.0
    assert age.seconds(7, 8, 3625.0, done_age=3625.0) == pytest.approx(25.0)


def test_a_consumer_that_stands_still_falls_behind_second_by_second() -> None:
    age = LagAge()
    seen = [age.seconds(0 if now == 0 else 10, 10 + now, float(now)) for now in range(0, 100, 5)]
    assert seen[1:] == pytest.approx(list(range(5, 100, 5)))


def test_a_backlog_from_before_the_start_is_no_older_than_the_newest_finished_record() -> None:
    age = LagAge()
    assert age.seconds(0, 1000, 0.0) == 0.0  # nothing is known
    assert age.seconds(0, 1000, 5.0) == 5.0  # at least
    assert age.seconds(100, 1000, 10.0, done_age=7200.0) == 7200.0


def test_a_topic_that_was_created_again_has_another_account() -> None:
    age = LagAge()
    age.seconds(900, 1000, 0.0)
    assert age.seconds(0, 3, 5.0) == 0.0
    assert age.seconds(0, 3, 9.0) == 4.0


def test_memory_is_bounded_and_old_samples_stay_good_to_a_few_percent() -> None:
    age = LagAge()
    age.seconds(0, 0, 0.0)
    for tick in range(1, 20_000):  # ten records a sample, nothing is read for a day
        found = age.seconds(0 if tick < 19_000 else 100_000, 10 * tick, 5.0 * tick)
    assert len(age._ends) <= KEPT + 1
    true = 5.0 * 19_999 - 5.0 * 10_000
    assert found == pytest.approx(true, rel=0.05)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 25)), min_size=2, max_size=300))
def test_it_is_never_off_by_more_than_the_time_between_samples(steps: list[tuple[int, int]]) -> None:
    """Records are written at known times; the age is that of the first one not read."""
    age, written, done = LagAge(), [], 0
    age.seconds(0, 0, 0.0)
    for tick, (new, read) in enumerate(steps, 1):
        now = 5.0 * tick
        written += [now - 5.0 * (new - n) / (new + 1) for n in range(new)]
        done = min(len(written), done + read)
        found = age.seconds(done, len(written), now)
        true = now - written[done] if done < len(written) else 0.0
        assert abs(found - true) <= 5.0 + 1e-6


def test_partitions_that_are_given_away_are_gone() -> None:
    lags = PartitionLags()
    lags.finished("t", 1, 990.0)
    lags.note({("t", 0): (5, 5), ("t", 1): (5, 9)}, 0.0, 1000.0)
    assert {part: (lag.records, lag.seconds) for part, lag in lags.lags.items()} == {("t", 0): (0, 0.0),
                                                                                     ("t", 1): (4, 10.0)}
    lags.note({("t", 0): (5, 5)}, 1.0, 1001.0)
    assert list(lags.lags) == [("t", 0)]
