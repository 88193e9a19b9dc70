"""The arithmetic of docs/scale.md."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale.run import size
from benchmarks.scale.sizing import Constants, Load, need, recorded

CONSTANTS = Constants(
    events_per_s=10_000, ranking_s=0.005, call_s=0.03, state_bytes=3000, point_bytes=2000, list_bytes=1000)


def test_a_few_users_need_one_of_each() -> None:
    found = need(Load(1000), CONSTANTS)
    assert (found.streams, found.ranking, found.knowledge, found.partitions, found.shards) == (1, 1, 1, 4, 1)


def test_what_a_hundred_million_users_need() -> None:
    load = Load(100_000_000, events_per_day=8.64, peak=2.0, calls_per_1000=50.0)
    assert load.peak_events_per_s == pytest.approx(20_000)
    found = need(load, CONSTANTS)  # with headroom 40,000 events/s and 2,000 calls/s
    assert (found.streams, found.ranking, found.knowledge) == (4, 210, 60)
    assert found.partitions == 256  # for 210 rankers and 200 times 500,000 users
    assert (found.states, found.points, found.lists) == (9e11, 4e11, 3e11)
    assert found.shards == 10


@pytest.mark.parametrize("more", [
    {"users": 2_000_000}, {"events_per_day": 20.0}, {"peak": 6.0}, {"calls_per_1000": 64.0}])
def test_more_load_needs_no_less(more: dict[str, float]) -> None:
    load = Load(1_000_000)
    before, after = need(load, CONSTANTS), need(replace(load, **more), CONSTANTS)
    assert all(getattr(after, name) >= getattr(before, name) for name in before.__slots__)
    assert after != before


def test_constants_come_from_results() -> None:
    found = recorded(live_extra_s=1e-5, ranking_s=0.005, list_bytes=1000)
    assert 5_000 < found.events_per_s < 100_000
    assert 0.001 < found.call_s < 1
    assert 1000 < found.state_bytes < 20_000
    assert 500 < found.point_bytes < 20_000


@pytest.mark.parametrize(("count", "text"), [(3600.0, "4 kB"), (3.6e6, "3.6 MB"), (3.58e11, "358 GB"), (1e12, "1 TB")])
def test_bytes_in_a_unit_that_fits(count: float, text: str) -> None:
    assert size(count) == text
