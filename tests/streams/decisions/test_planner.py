"""The planner: which messages it sends and when; redelivery changes no state and repeats the messages."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from schemas.messages import Judgement, KnowledgeRequest, KnowledgeUpdate, Margin, UserSeen
from streams.calibration.rehearsal import answer
from streams.decisions.planner import Plan, Planner, States
from streams.profile.catalogue import ItemVectors
from streams.profile.state import dumps, loads
from tests.streams.cases import CALIBRATION, event, item_vectors, planner, settings


def feed(stage: Planner, states: States, numbers: range, now: float = 0.0) -> Plan:
    return stage.events(states, [event(n) for n in numbers], now)


def known(stage: Planner, states: States, events: int = 3) -> KnowledgeRequest:
    """Give user u their first knowledge and return its request."""
    (request,) = feed(stage, states, range(events)).knowledge
    stage.updates(states, [(answer(request, "m1"), 1.0)], 0.0)
    return request


def judge(stage: Planner, states: States, counts: range, value: float, version: int = 1) -> Plan:
    margins = [Margin(event_id=f"e{c - 1}", item_id=f"i{c - 1}", count=c, value=value, knowledge_version=version)
               for c in counts]
    return stage.judgements(states, [Judgement(
        user_id="u", margins=margins, model_version="m1", event_time=1.0, judged_at=0.0)], 0.0)


def test_cold_start_is_requested_once_with_the_third_event() -> None:
    stage, states = planner(), {}
    assert feed(stage, states, range(2)).knowledge == []
    (request,) = feed(stage, states, range(2, 3)).knowledge
    assert (request.version, request.reason, request.count, request.event_id) == (1, "cold_start", 3, "e2")
    assert (request.event_time, request.caused_at, request.history) == (2.0, 1002.0, ["i0", "i1", "i2"])
    assert feed(stage, states, range(3, 9)).knowledge == []


def test_a_batch_gives_one_ranking_request_per_user_with_the_events_to_judge() -> None:
    stage, states = planner(), {}
    known(stage, states)
    plan = stage.events(states, [event(3), event(0, "other"), event(4)], now=7.0)
    first, second = plan.ranking
    assert (first.user_id, second.user_id) == ("u", "other")
    assert [(j.item_id, j.position, j.count) for j in first.judged] == [("i3", 3, 4), ("i4", 4, 5)]
    assert (first.knowledge_version, first.knowledge_model_version, first.trust) == (1, "m1", 1.0)
    assert (first.event_time, first.caused_at, first.requested_at, first.count) == (4.0, 1004.0, 7.0, 5)


def test_late_events_are_folded_but_not_judged() -> None:
    stage, states = planner(), {}
    known(stage, states)
    (request,) = stage.events(states, [event(5), event(4, offset=9)], 0.0).ranking
    assert request.history == ["i0", "i1", "i2", "i4", "i5"]
    assert [j.item_id for j in request.judged] == ["i5"]
    (again,) = stage.events(states, [event(4, offset=9)], 0.0).ranking
    assert [j.item_id for j in again.judged] == []


def test_items_older_than_the_history_are_sent_as_seen() -> None:
    (request,) = feed(planner(), {}, range(9)).ranking
    assert request.history == [f"i{n}" for n in range(3, 9)]
    assert request.seen == ["i0", "i1", "i2"]


def test_redelivered_events_change_no_state_and_repeat_their_messages() -> None:
    stage, states = planner(), {}
    first = feed(stage, states, range(5), now=1.0)
    before = dumps(states["u"])
    again = feed(stage, states, range(5), now=1.0)
    states["u"].duplicates = 0
    assert dumps(states["u"]) == before
    assert again.ranking == first.ranking
    assert again.knowledge == first.knowledge


def test_backfill_is_folded_and_causes_no_messages() -> None:
    stage, states = planner(), {}
    plan = stage.events(states, [event(n, backfill=True) for n in range(5)], 0.0)
    assert (plan.ranking, plan.knowledge, plan.changed) == ([], [], {"u"})
    assert states["u"].count == 5


def test_an_unanswered_request_is_repeated_under_a_higher_version() -> None:
    stage, states = planner(), {}
    feed(stage, states, range(3), now=0.0)
    (after_events,) = feed(stage, states, range(3, 203), now=1.0).knowledge
    assert (after_events.version, after_events.reason) == (2, "cold_start")
    (after_time,) = feed(stage, states, range(203, 204), now=602.0).knowledge
    assert after_time.version == 3


def test_an_update_makes_knowledge_current_and_ranks_the_user_again() -> None:
    stage, states = planner(), {}
    request = known(stage, states)
    state = states["u"]
    assert (state.knowledge_version, state.knowledge_count, state.pending) == (1, 3, None)
    assert state.anchor == state.long
    plan = stage.updates(states, [(answer(request, "m1"), 5.0)], 6.0)  # delivered again
    assert plan.changed == set()
    assert [(r.reason, r.caused_at) for r in plan.ranking] == [("knowledge", 5.0)]


def test_an_older_update_changes_nothing_and_an_unknown_user_is_counted() -> None:
    stage, states = planner(), {}
    request = known(stage, states)
    stage.updates(states, [(answer(request.model_copy(update={"version": 4})), 0.0)], 0.0)
    before = dumps(states["u"])
    stranger = request.model_copy(update={"user_id": "?"})
    plan = stage.updates(states, [(answer(request), 0.0), (answer(stranger), 0.0)], 0.0)
    assert (dumps(states["u"]), plan.ranking, plan.unknown_users) == (before, [], 1)


def test_an_update_that_was_not_written_still_counts() -> None:
    stage, states = planner(), {}
    (request,) = feed(stage, states, range(3)).knowledge
    stage.updates(states, [(answer(request).model_copy(update={"written": False}), 0.0)], 0.0)
    assert (states["u"].knowledge_version, states["u"].pending) == (1, None)


def test_a_newer_request_stays_pending_when_an_older_one_is_answered() -> None:
    stage, states = planner(), {}
    (first,) = feed(stage, states, range(3), now=0.0).knowledge
    feed(stage, states, range(3, 4), now=700.0)
    stage.updates(states, [(answer(first), 0.0)], 0.0)
    state = states["u"]
    assert state.knowledge_version == 1
    assert state.pending is not None
    assert state.pending.version == 2


def test_a_contradiction_removes_trust_and_requests_knowledge() -> None:
    stage, states = planner(), {}
    known(stage, states)
    feed(stage, states, range(3, 20))
    trusts = []
    for count in range(4, 14):
        plan = judge(stage, states, range(count, count + 1), -9.0)
        trusts.append(states["u"].trust)
    assert trusts == sorted(trusts, reverse=True)
    assert trusts[-1] == 0.0
    assert (states["u"].contradicted_at, states["u"].judged_count) == (13, 13)
    assert [r.reason for r in plan.knowledge] == ["contradiction"]
    assert [(r.trust, r.reason) for r in plan.ranking] == [(0.0, "event")]
    assert plan.alignment == []  # its event has left the short history of this test
    (ranking,) = feed(stage, states, range(20, 21)).ranking
    assert ranking.trust == 0.0  # until there is newer knowledge
    stage.updates(states, [(answer(plan.knowledge[0]), 0.0)], 0.0)
    state = states["u"]
    assert (state.trust, state.contradicted_at, state.log_wealth) == (0.5, 0, [])  # half of its initial value
    feed(stage, states, range(21, 40))
    trusts = []
    for count in range(22, 32):
        judge(stage, states, range(count, count + 1), 9.0, version=state.knowledge_version)
        trusts.append(state.trust)
    assert trusts == sorted(trusts)
    assert (trusts[-1], state.standing, state.help_wealth) == (1.0, 1.0, [])


def test_alignment_samples_have_the_history_before_their_event() -> None:
    stage, states = planner(), {}
    known(stage, states)
    feed(stage, states, range(3, 14))
    plan = judge(stage, states, range(4, 15), -9.0)
    assert [(s.item_id, s.history) for s in plan.alignment][:2] == [("i8", []), ("i9", ["i8"])]
    assert plan.alignment[0].log_wealth > 0
    before = dumps(states["u"])
    again = judge(stage, states, range(4, 15), -9.0)  # delivered again after a crash
    assert dumps(states["u"]) == before
    assert again.alignment == plan.alignment
    assert again.knowledge == plan.knowledge


def test_each_margin_of_the_current_knowledge_on_an_unseen_event_counts_once() -> None:
    stage, states = planner(), {}
    known(stage, states)
    feed(stage, states, range(3, 8))
    judge(stage, states, range(1, 4), -9.0)  # seen by the knowledge
    judge(stage, states, range(4, 6), -9.0, version=0)
    assert states["u"].log_wealth == []
    judge(stage, states, range(4, 6), -9.0)
    wealth = list(states["u"].log_wealth)
    judge(stage, states, range(4, 6), -9.0)
    assert states["u"].log_wealth == wealth


def test_a_lost_state_catches_up_with_the_store() -> None:
    stage, states = planner(), {}
    known(stage, states)
    feed(stage, states, range(3, 8))
    judge(stage, states, range(4, 9), -9.0, version=7)
    state = states["u"]
    assert (state.knowledge_version, state.knowledge_count, state.log_wealth) == (7, 8, [])


def test_knowledge_is_stale_by_age_or_by_another_fitted_model() -> None:
    stage, states = planner(), {}
    known(stage, states)
    assert feed(stage, states, range(3, 9)).knowledge == []
    old = copy.deepcopy(states)
    (request,) = stage.events(states, [event(9, time=5000.0)], 0.0).knowledge
    assert (request.reason, request.version) == ("stale", 2)
    stage.policy = type(stage.policy).of(CALIBRATION, stage.settings.refresh, "m2")
    (request,) = stage.events(old, [event(9)], 0.0).knowledge
    assert request.reason == "stale"


def test_refreshes_respect_the_cooldown() -> None:
    stage, states = planner(cooldown=5), {}
    known(stage, states)
    assert stage.events(states, [event(3, time=5000.0)], 0.0).knowledge == []
    assert len(feed(stage, states, range(5004, 5008)).knowledge) == 1


@pytest.mark.parametrize("steady", [True, False])
def test_interest_drift_requests_knowledge_and_steady_interest_does_not(steady: bool) -> None:
    stage = planner(CALIBRATION.model_copy(update={"drift_mean": 0.1, "drift_sd": 0.1, "ttl_s": 1e9}))
    states: States = {}
    near = stage.vectors.vectors
    far_item = int((near[:-1] @ near[0]).argmin())
    plan = stage.events(states, [event(n, item=0) for n in range(3)], 0.0)
    stage.updates(states, [(answer(plan.knowledge[0]), 0.0)], 0.0)
    requests = stage.events(states, [event(n, item=0 if steady else far_item) for n in range(3, 40)], 0.0).knowledge
    assert [request.reason for request in requests] == ([] if steady else ["drift"])


def test_an_update_is_a_valid_message() -> None:
    stage, states = planner(), {}
    request = known(stage, states)
    assert KnowledgeUpdate.model_validate_json(answer(request).model_dump_json()) == answer(request)


def test_after_a_rollback_knowledge_of_the_model_in_use_is_not_stale() -> None:
    stage, states = Planner(item_vectors(), CALIBRATION, settings(cooldown=0), "m2"), {}
    (request,) = feed(stage, states, range(3)).knowledge
    stage.updates(states, [(answer(request, "m1"), 1.0)], 0.0)
    (stale,) = feed(stage, states, range(3, 4)).knowledge
    assert stale.reason == "stale"
    assert stage.follow(item_vectors(), CALIBRATION, "m1")
    assert not stage.follow(item_vectors(), CALIBRATION, "m1")
    stage.updates(states, [(answer(stale, "m1"), 1.0)], 0.0)
    assert feed(stage, states, range(4, 8)).knowledge == []
    changed = planner().follow(item_vectors(), CALIBRATION, "m1")
    assert not changed, "a planner without a model version never compares versions"


def test_switching_models_replaces_thresholds_and_interest_space() -> None:
    stage, states = Planner(item_vectors(), CALIBRATION, settings(cooldown=0), "m1"), {}
    (request,) = feed(stage, states, range(3)).knowledge
    stage.updates(states, [(answer(request, "m1"), 1.0)], 0.0)
    rng = np.random.default_rng(8)
    wider = ItemVectors([f"i{n}" for n in range(20)], rng.normal(size=(20, 12)).astype(np.float32))
    assert stage.follow(wider, CALIBRATION.model_copy(update={"drift_threshold": 50.0, "margin_bound": 9.0}), "m2")
    assert stage.detector.threshold == 50.0
    assert stage.margin_bound == 9.0
    feed(stage, states, range(3, 5))
    fresh_stage, fresh_states = Planner(wider, CALIBRATION, settings(cooldown=0), "m2"), {}
    feed(fresh_stage, fresh_states, range(5))
    switched, fresh = (np.frombuffer(users["u"].short, "<f4") for users in (states, fresh_states))
    np.testing.assert_allclose(switched, fresh, rtol=1e-5)
    assert states["u"].interest_model == "m2"


def test_only_a_model_with_knowledge_has_a_market() -> None:
    stage = Planner(item_vectors(), CALIBRATION, settings(), "m1")
    stage.follow(item_vectors(), CALIBRATION.model_copy(update={"knowledge": False}), "m2")
    assert (stage.policy.name, stage.market) == ("never", None)
    stage.follow(item_vectors(), CALIBRATION, "m1")
    assert stage.policy.name == "freshet"
    assert stage.market is not None


def switched(users: list[str], made_by: str = "m1") -> tuple[Planner, States]:
    """Users with knowledge of m1, in a planner that has just switched to m2."""
    stage, states = Planner(item_vectors(), CALIBRATION, settings(cooldown=0), "m1"), {}
    for user in users:
        (request,) = stage.events(states, [event(n, user, item=0) for n in range(3)], 0.0).knowledge
        stage.updates(states, [(answer(request, made_by), 1.0)], 0.0)
    assert stage.follow(item_vectors(), CALIBRATION, "m2")
    return stage, states


def test_while_the_knowledge_workers_have_another_model_few_calls_are_made() -> None:
    users = [f"u{n}" for n in range(50)]
    stage, states = switched(users)
    asked = 0
    for second in range(200):  # every user acts every second, each request is answered by the old model
        for user in users:
            plan = stage.events(states, [event(3 + second, user, item=0, offset=3 + second)], float(second))
            asked += len(plan.knowledge)
            stage.updates(states, [(answer(request, "m1"), 1.0) for request in plan.knowledge], float(second))
    assert asked == 7  # at 0, 5, 15, 35, 75, 135 and 195 s, to find out
    plans = [stage.events(states, [event(203, user, item=0)], 260.0) for user in users]
    (probe,) = [request for plan in plans for request in plan.knowledge]
    stage.updates(states, [(answer(probe, "m2"), 1.0)], 261.0)
    plans = [stage.events(states, [event(204, user, item=0)], 262.0) for user in users]
    assert len([request for plan in plans for request in plan.knowledge]) == 49, "now everyone's is made again"


def test_a_user_whose_worker_is_behind_is_asked_for_again_after_ten_minutes() -> None:
    stage, states = switched(["u", "other"])
    (probe,) = stage.events(states, [event(3, "other", item=0)], 0.0).knowledge
    stage.updates(states, [(answer(probe, "m2"), 1.0)], 1.0)
    asked = []
    for minute in range(60):
        plan = stage.events(states, [event(3 + minute, item=0)], 60.0 * minute + 2.0)
        asked += [minute] * len(plan.knowledge)
        stage.updates(states, [(answer(request, "m1"), 1.0) for request in plan.knowledge], 60.0 * minute + 2.0)
    assert asked == [0, 10, 20, 30, 40, 50]


def test_knowledge_of_a_withdrawn_adapter_is_stale() -> None:
    stage, states = Planner(item_vectors(), CALIBRATION, settings(cooldown=0), "m1"), {}
    (request,) = feed(stage, states, range(3)).knowledge
    stage.updates(states, [(answer(request, "m1+a"), 1.0)], 0.0)
    assert stage.events(states, [event(3, item=0)], 0.0).knowledge == []
    stage.withdraw(["m1+a", "m0"])
    (stale,) = stage.events(states, [event(4, item=0)], 0.0).knowledge
    assert stale.reason == "stale"
    stage.updates(states, [(answer(stale, "m1+b"), 1.0)], 0.0)
    assert stage.events(states, [event(5, item=0)], 0.0).knowledge == []


def test_a_user_who_is_here_is_ranked_with_what_is_known_of_them() -> None:
    stage, states = planner(), {}
    feed(stage, states, range(2))
    before = dumps(states["u"])
    plan = stage.seen(states, [(UserSeen(user_id="u"), 5.0), (UserSeen(user_id="u", allow=["a"]), 6.0),
                               (UserSeen(user_id="new"), 7.0)], 10.0)
    # No state for a user who has done nothing.
    assert (plan.changed, states.keys(), dumps(states["u"])) == (set(), {"u"}, before)
    assert [(one.user_id, one.reason, one.history, one.allow, one.count, one.caused_at) for one in plan.ranking] == [
        ("u", "seen", ["i0", "i1"], ["a"], 2, 6.0), ("new", "seen", [], [], 0, 7.0)]


def test_labels_are_kept_for_a_user_who_wants_that() -> None:
    stage, states = planner(), {}
    stage.seen(states, [(UserSeen(user_id="u", deny=["adult"], keep=True), 5.0)], 10.0)
    plan = feed(stage, states, range(1))
    assert (plan.ranking[0].deny, plan.ranking[0].allow) == (["adult"], [])
    plan = stage.seen(states, [(UserSeen(user_id="u", allow=["new"], deny=[]), 5.0)], 10.0)
    assert (plan.ranking[0].deny, plan.ranking[0].allow) == ([], ["new"])
    assert (loads(dumps(states["u"])).deny, states["u"].allow) == (["adult"], [])
