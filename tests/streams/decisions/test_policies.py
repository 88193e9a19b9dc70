"""The exact events at which each policy requests knowledge."""

from __future__ import annotations

import copy

import pytest

from schemas.messages import Judgement, KnowledgeRequest, Margin
from streams.calibration.rehearsal import answer
from streams.decisions.planner import Planner, States
from streams.profile.fold import Event
from streams.profile.state import dumps
from tests.streams.cases import CALIBRATION, event, planner

QUIET = CALIBRATION.model_copy(update={"ttl_s": 1e9, "drift_threshold": 1e6})


def run(stage: Planner, events: list[Event], *, answered: bool = True) -> list[KnowledgeRequest]:
    """Feed events one by one and answer each request before the next event; return all requests."""
    states: States = {}
    requests = []
    for next_event in events:
        plan = stage.events(states, [next_event], 0.0)
        requests.extend(plan.knowledge)
        if answered:
            stage.updates(states, [(answer(request, "m1"), 0.0) for request in plan.knowledge], 0.0)
    return requests


def spread(times: list[float]) -> list[Event]:
    return [event(n, time=time) for n, time in enumerate(times)]


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize(("policy", "counts"), [
    ("never", []), ("once", [3]), ("always", [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]), ("every-n", [3, 7, 11]),
    ("drift", [3]), ("judge", [3]), ("nightly", [3]), ("freshet", [3])])
def test_request_counts_with_steady_behaviour(policy: str, counts: list[int], answered: bool) -> None:
    asked = run(planner(QUIET, policy=policy, every=4), [event(n, item=0) for n in range(12)], answered=answered)
    assert [request.count for request in asked] == counts
    assert [request.version for request in asked] == list(range(1, len(counts) + 1))
    later = "stale" if answered else "cold_start"
    assert [request.reason for request in asked] == ["cold_start", *[later] * (len(counts) - 1)][:len(counts)]


def test_every_n_with_n_1_equals_always() -> None:
    events = [event(n) for n in range(9)]
    assert run(planner(policy="every-n", every=1), events) == run(planner(policy="always"), events)


@pytest.mark.parametrize(("policy", "reason"), [
    ("never", None), ("once", None), ("drift", "drift"), ("judge", None), ("freshet", "drift")])
def test_which_policies_act_on_drift(policy: str, reason: str | None) -> None:
    stage = planner(CALIBRATION.model_copy(update={"drift_mean": 0.1, "drift_sd": 0.1, "ttl_s": 1e9}), policy=policy)
    near = stage.vectors.vectors
    far_item = int((near[:-1] @ near[0]).argmin())
    asked = run(stage, [event(n, item=0 if n < 8 else far_item) for n in range(20)])
    assert {request.reason for request in asked} == {
        reason for reason in ("cold_start", reason) if reason is not None and policy != "never"}


@pytest.mark.parametrize(("policy", "acts"), [
    ("once", False), ("nightly", False), ("every-n", False), ("drift", False), ("judge", True), ("freshet", True)])
def test_which_policies_act_on_contradiction(policy: str, acts: bool) -> None:
    stage, states = planner(QUIET, policy=policy, every=100), {}
    plan = stage.events(states, [event(n) for n in range(3)], 0.0)
    stage.updates(states, [(answer(request, "m1"), 0.0) for request in plan.knowledge], 0.0)
    stage.events(states, [event(n) for n in range(3, 15)], 0.0)
    margins = [Margin(event_id=f"e{c - 1}", item_id="i0", count=c, value=-9.0, knowledge_version=1)
               for c in range(4, 16)]
    plan = stage.judgements(states, [Judgement(
        user_id="u", margins=margins, model_version="m1", event_time=1.0, judged_at=0.0)], 0.0)
    assert states["u"].trust == 0.0
    assert [request.reason for request in plan.knowledge] == ["contradiction"] * acts
    after = stage.events(states, [event(15)], 0.0).knowledge
    assert after == []


@pytest.mark.parametrize(("policy", "asks"), [("drift", False), ("judge", False), ("once", False), ("freshet", True)])
def test_only_freshet_acts_on_staleness(policy: str, asks: bool) -> None:
    asked = run(planner(policy=policy), [event(n, time=float(n)) for n in range(9)] + [event(9, time=5000.0)])
    assert [request.reason for request in asked] == ["cold_start", *["stale"] * asks]


def test_the_cooldown_applies_to_thresholds_and_not_to_schedules() -> None:
    events = spread([0, 1, 2, 5000.0, 5001.0, 5002.0, 5003.0, 5004.0, 5005.0])
    assert [r.count for r in run(planner(policy="freshet", cooldown=5), events)] == [3, 8]
    assert [r.count for r in run(planner(policy="every-n", every=2, cooldown=5), events)] == [3, 5, 7, 9]


class TestNightly:
    """The `nightly` policy with a period of 100 s."""

    def stage(self) -> Planner:
        return planner(QUIET, policy="nightly", period_s=100.0)

    def test_requests_with_the_first_event_of_a_period_from_the_history_before_it(self) -> None:
        asked = run(self.stage(), spread([0, 1, 2, 50, 99, 100, 150, 420, 430]))
        assert [(r.count, r.event_time, r.reason, len(r.history)) for r in asked] == [
            (3, 2.0, "cold_start", 3), (5, 99.0, "stale", 5), (7, 150.0, "stale", 6)]
        assert asked[1].history == ["i0", "i1", "i2", "i3", "i4"]
        assert asked[1].event_id == "e4"

    def test_unchanged_histories_cause_no_request(self) -> None:
        assert [r.count for r in run(self.stage(), spread([0, 1, 99, 100, 200, 300]))] == [3, 4, 5]
        assert [r.count for r in run(self.stage(), spread([98, 99, 100, 101]))] == [3]

    def test_a_batch_over_several_periods_gives_the_same_requests_as_single_events(self) -> None:
        events = spread([0, 1, 2, 50, 99, 100, 150, 120, 420, 430, 500])
        for user in ("v", "w"):
            events += [event(20 + n, user, time=30.0 * n) for n in range(12)]
        stage, states = self.stage(), {}
        first = stage.events(states, events[:3] + events[11:14] + events[23:26], 0.0).knowledge
        stage.updates(states, [(answer(request, "m1"), 0.0) for request in first], 0.0)
        rest = events[3:11] + events[14:23] + events[26:]
        single, one_by_one = copy.deepcopy(states), []
        together = stage.events(states, rest, 0.0).knowledge
        for next_event in rest:
            one_by_one += stage.events(single, [next_event], 0.0).knowledge
        key = lambda r: (r.user_id, r.version)  # noqa: E731
        fields = [(r.user_id, r.version, r.reason, r.count, r.event_time, r.history) for r in sorted(together, key=key)]
        assert fields == [(r.user_id, r.version, r.reason, r.count, r.event_time, r.history)
                          for r in sorted(one_by_one, key=key)]
        assert len(fields) > 6
        assert {user: dumps(state) for user, state in states.items()} == {
            user: dumps(state) for user, state in single.items()}

    def test_a_replay_can_answer_before_the_event_is_judged(self) -> None:
        stage, states = self.stage(), {}
        stage.updates(states, [(answer(r, "m1"), 0.0) for r in stage.events(
            states, spread([0, 1, 2, 50]), 0.0).knowledge], 0.0)
        stage.events(states, [event(4, time=60)], 0.0)
        (request,) = stage.nightly_requests(states, [event(5, time=130)], 0.0).knowledge
        assert (request.count, request.event_time) == (5, 60.0)
        stage.updates(states, [(answer(request, "m1"), 0.0)], 0.0)
        plan = stage.events(states, [event(5, time=130)], 0.0)
        assert plan.knowledge == []
        assert [(j.count, plan.ranking[0].knowledge_version) for j in plan.ranking[0].judged] == [(6, 2)]

    def test_backfill_and_late_events_do_not_end_a_period(self) -> None:
        stage, states = self.stage(), {}
        assert stage.events(states, [event(n, time=60.0 * n, backfill=True) for n in range(6)], 0.0).knowledge == []
        assert stage.events(states, [event(6, time=10.0, offset=60)], 0.0).knowledge[0].reason == "cold_start"
        assert stage.events(states, [event(7, time=20.0, offset=70)], 0.0).knowledge == []

    def test_a_redelivered_event_repeats_the_same_request(self) -> None:
        stage, states = self.stage(), {}
        stage.updates(states, [(answer(r, "m1"), 0.0) for r in stage.events(
            states, spread([0, 1, 2, 50]), 0.0).knowledge], 0.0)
        stage.events(states, [event(4, time=60)], 0.0)
        (request,) = stage.events(states, [event(5, time=130)], 0.0).knowledge
        assert stage.events(states, [event(5, time=130)], 0.0).knowledge == [request]


@pytest.mark.parametrize("policy", ["once", "nightly", "every-n", "always", "drift", "judge", "freshet"])
def test_a_redelivered_batch_repeats_its_requests_and_changes_no_state(policy: str) -> None:
    stage, states = planner(policy=policy, every=2, period_s=4.0), {}
    events = [event(n) for n in range(5)]
    first = stage.events(states, events, 0.0)
    before = dumps(states["u"])
    again = stage.events(states, events, 0.0)
    states["u"].duplicates = 0
    assert dumps(states["u"]) == before
    assert again.knowledge == first.knowledge[-1:]


@pytest.mark.parametrize("policy", ["always", "nightly", "freshet"])
def test_a_model_without_knowledge_causes_no_requests(policy: str) -> None:
    without = CALIBRATION.model_copy(update={"knowledge": False})
    assert run(planner(without, policy=policy), [event(n) for n in range(30)]) == []
