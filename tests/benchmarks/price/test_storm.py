"""A storm, a slow GPU and a failed GPU, with the planner and a simulated knowledge worker."""

from __future__ import annotations

import pytest

from benchmarks.price.storm import Scenario, Simulation
from streams.decisions.price import MIN_QUEUE, QUEUE_LIMIT

# All 100 users have their first knowledge by second 150.
SMALL = {"users": 100, "events_per_s": 20.0, "speed": 1.0, "duration": 650, "storm_at": 200}
SCENARIOS = [
    Scenario("storm", "", **SMALL),
    Scenario("slow", "", **SMALL, trouble=(200, 350), speed_in_trouble=0.1),
    Scenario("dead", "", **SMALL, trouble=(200, 350), speed_in_trouble=0.0)]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_system_recovers_with_a_bounded_queue_and_no_lost_user(scenario: Scenario) -> None:
    longest, targets = 0, []

    def watch(second: int, simulation: Simulation) -> None:
        nonlocal longest
        market = simulation.planner.market
        assert market is not None
        targets.append(market.target)
        for user, request in simulation.queue.items():  # one per user, the newest
            pending = simulation.states[user].pending
            assert pending is not None
            assert request.version == pending.version
        if second >= scenario.storm_at:
            longest = max(longest, len(simulation.queue) - market.forced)

    simulation = Simulation(scenario)
    story = simulation.run(watch)
    market = simulation.planner.market
    assert market is not None
    before = scenario.storm_at
    assert longest <= QUEUE_LIMIT * max(targets[before:])
    assert max(story.price[before:]) > 0.1 > story.price[before - 1]
    assert story.price[-1] == 0
    assert story.queue[-1] < MIN_QUEUE
    assert story.wrong[before] > 0.9
    assert story.wrong[-1] <= 0.05
    assert story.longest_wait <= simulation.planner.limits.patience + 5
    assert {request.user_id for request in story.requests if request.event_time >= before} == set(simulation.states)


def test_without_a_price_the_queue_contains_almost_all_users() -> None:
    story = Simulation(SCENARIOS[2], priced=False).run()
    assert max(story.queue[200:]) > 90
