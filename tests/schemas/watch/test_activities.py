"""Every second of a consumer belongs to one activity, also while it lasts."""

from __future__ import annotations

from schemas.watch.activities import ACTIVITIES, Activities


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_activities_add_up_to_the_time_that_passed() -> None:
    clock = Clock()
    doing = Activities(clock)
    for activity, seconds in (("poll", 1.0), ("processing", 2.0), ("idle", 4.0), ("processing", 8.0)):
        doing.enter(activity)
        clock.now += seconds
    totals = doing.totals()
    assert set(totals) == set(ACTIVITIES)
    assert sum(totals.values()) == 15.0
    assert (totals["processing"], totals["idle"], totals["poll"]) == (10.0, 4.0, 1.0)


def test_a_long_wait_counts_while_it_lasts() -> None:
    """Counted at its end, an idle hour would show as none and then as an hour in one scrape."""
    clock = Clock()
    doing = Activities(clock)
    seen = []
    for _ in range(3):
        clock.now += 20.0
        seen.append(doing.totals()["idle"])
    assert seen == [20.0, 40.0, 60.0]


def test_a_loop_that_goes_on_is_idle_when_the_last_batch_has_arrived() -> None:
    clock = Clock()
    doing = Activities(clock)
    doing.enter("processing")
    doing.sent()
    doing.enter("processing")
    doing.sent()
    clock.now += 3.0
    doing.arrived()
    clock.now += 2.0  # the other one
    doing.arrived()
    clock.now += 7.0
    doing.enter("processing")
    doing.sent()
    doing.enter("processing")  # the next batch is in hand when it arrives
    doing.arrived()
    assert doing.now == "processing"
    assert (doing.totals()["produce"], doing.totals()["idle"]) == (5.0, 7.0)
