"""What events mean: against takes back, neutral changes nothing, taken is remembered; which items may come again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schemas.settings import EventSettings, RankingSettings, Settings
from schemas.settings.meanings import DAY_S, Repeats
from streams.decisions.outgoing import masked
from streams.decisions.planner import Plan, Planner
from streams.profile.bounds import AGAINST_BYTES, MARKED, TAKEN_BYTES
from streams.profile.fold import Event
from streams.profile.state import UserState, dumps, loads
from streams.service.app import MAX_BATCH_BYTES
from streams.service.outbox import wire
from tests.streams import cases
from tests.streams.cases import event

DAY = int(DAY_S)


def planner(settings: Settings | None = None) -> Planner:
    return Planner(cases.item_vectors(), cases.CALIBRATION, settings or cases.settings(), "m1")


def folded(*events: Event, settings: Settings | None = None) -> tuple[UserState, Plan]:
    """The state after the events, one batch each, and the last plan."""
    plans, states, plan = planner(settings), {}, Plan()
    for one in events:
        plan = plans.events(states, [one], 1e9)
    return states["u"], plan


def with_repeats(repeat: str = "never", taken: str = "never") -> Settings:
    return replace(cases.settings(), ranking=RankingSettings(repeat=repeat, repeat_taken=taken))


@pytest.mark.parametrize("kind", ["return", "Order Refunded", "dislike", "SKIP", "hide"])
def test_against_takes_back_what_earlier_events_said_of_the_item(kind: str) -> None:
    views = [event(0), event(1), event(2, item=1, kind="purchase"), event(3)]
    state, plan = folded(*views, event(4, item=1, kind=kind))
    without, _ = folded(views[0], views[3])
    assert state.items == without.items == ["i0", "i3"]
    for name in ("short", "long"):
        np.testing.assert_allclose(
            np.frombuffer(getattr(state, name), "<f4"), np.frombuffer(getattr(without, name), "<f4"), atol=1e-6)
    request = plan.ranking[-1]
    assert (request.history, request.seen, request.judged) == (["i0", "i3"], ["i1"], [])
    assert request.weights == {"i1": -1.0}
    assert loads(dumps(state)) == state


def test_an_event_against_is_no_observation_of_drift_and_no_reason_for_knowledge() -> None:
    plans, states = planner(), {"u": UserState(anchor=cases.item_vectors().vectors[3].tobytes(), knowledge_version=1)}
    plans.events(states, [event(n) for n in range(4)], 1e9)
    before = (states["u"].cusum, states["u"].drift_n, states["u"].drift_mean, states["u"].count)
    plan = plans.events(states, [event(5, item=2, kind="return")], 1e9)
    assert (states["u"].cusum, states["u"].drift_n, states["u"].drift_mean, states["u"].count) == before
    assert (plan.knowledge, plan.apart) == ([], 1)


def test_what_comes_late_is_taken_back_too_and_what_comes_after_counts() -> None:
    state, _ = folded(
        event(0), event(9, item=1, kind="return", offset=1), event(5, item=1, offset=2), event(10, item=1))
    assert (state.items, state.times, state.apart) == (["i0", "i1"], [0.0, 10.0], 2)
    assert masked(state) == ["i1"]


def test_neutral_changes_nothing_but_is_counted_once() -> None:
    state, _ = folded(event(0), event(1))
    plans, states = planner(), {"u": loads(dumps(state))}
    plan = plans.events(states, [event(2, kind="impression"), event(2, kind="impression")], 1e9)
    assert plan.ranking == plan.knowledge == []
    after = states["u"]
    assert (after.apart, after.duplicates) == (1, 1)
    after.apart, after.apart_until, after.duplicates, after.offset = 0, -1.0, 0, state.offset
    del after.event_ids["e2"]
    assert after == state


def test_a_new_user_is_answered_whatever_they_did() -> None:
    for kind in ("impression", "hide", "view"):
        _, plan = folded(event(0, kind=kind))
        assert len(plan.ranking) == 1


def test_unknown_types_count_as_interest_and_are_counted() -> None:
    state, plan = folded(event(0, kind="lend"))
    assert (state.items, plan.unknown_types) == (["i0"], 1)
    settings = replace(cases.settings(), events=EventSettings(meanings={"Lend": "taken:2", "view": "against"}))
    state, plan = folded(event(0, kind="lend"), settings=settings)
    assert (state.taken, plan.unknown_types, plan.ranking[-1].weights) == ({"i0": 0.0}, 0, {"i0": 2.0})
    state, plan = folded(event(0, kind="view"), settings=settings)
    assert (state.items, plan.ranking[-1].seen) == ([], ["i0"])


def test_plain_events_leave_a_state_without_anything_new() -> None:
    state, plan = folded(*[event(n) for n in range(12)])
    assert (state.taken, state.against, state.apart) == ({}, {}, 0)
    assert set(state.seen.values()) == {None}
    assert (plan.ranking[-1].repeat, plan.ranking[-1].weights) == (False, {})


@pytest.mark.parametrize(("repeat", "taken", "out"), [
    ("never", "never", {"i0", "i1", "i2", "i3"}),
    ("always", "always", {"i3"}),
    ("always", "never", {"i1", "i3"}),
    ("after 20 days", "never", {"i1", "i2", "i3"}),
    ("after 20 days", "after 40 days", {"i1", "i2", "i3"}),
    ("never", "after 20 days", {"i0", "i2", "i3"}),
])
def test_an_item_returns_when_the_settings_say_so(repeat: str, taken: str, out: set[str]) -> None:
    """Item 0 was viewed 40 days ago, 1 bought 30 days ago, 2 viewed today, 3 hidden 50 days ago."""
    settings = with_repeats(repeat, taken)
    _, plan = folded(
        event(0, item=3, time=0, kind="hide"), event(1, item=0, time=10 * DAY), event(2, item=1, time=20 * DAY),
        event(3, item=1, time=20 * DAY + 1, kind="purchase"), event(4, item=2, time=50 * DAY), settings=settings)
    request = plan.ranking[-1]
    shown = set(request.seen) | (set() if request.repeat else set(request.history))
    assert shown == out
    assert request.repeat == (repeat != "never" or taken != "never")


def test_items_that_left_the_history_return_by_their_own_time() -> None:
    settings = with_repeats("after 5 days")
    first = [event(n, time=n * DAY) for n in range(12)]  # 6 fit into the history
    state, plan = folded(*first, settings=settings)
    assert set(plan.ranking[-1].seen) == {"i7", "i8", "i9", "i10", "i11"}
    assert len(state.seen) == 6
    before, _ = folded(*first)  # the shop changes its mind: what has no time is old
    assert set(masked(before, Repeats(5 * DAY_S))) == {"i7", "i8", "i9", "i10", "i11"}


def test_what_is_taken_and_what_the_user_is_against_is_bounded() -> None:
    plans, user = planner(), "\x01" * 256
    label = ["\x01" * 100] * 20
    states = {user: UserState(allow=label, deny=label)}
    names = ["".join("\x01\x02"[int(bit)] for bit in f"{n:032b}") * 8 for n in range(3000)]
    kinds = ["purchase", "return", "view", "purchase"]
    largest = 0
    for start in range(0, len(names), 17):
        plan = plans.events(states, [
            Event(user, names[n], float(n), kinds[n % 4], f"{n:0200}", n, 1.0) for n in
            range(start, min(start + 17, len(names)))], 1e9)
        largest = max(largest, *(len(wire(one)) for one in (*plan.ranking, *plan.knowledge)))
    state = states[user]
    assert max(largest, len(dumps(state))) < MAX_BATCH_BYTES - 1_000
    assert len(wire(plan.ranking[-1])) > AGAINST_BYTES + TAKEN_BYTES  # they are in the request
    ordinary = [event(n, kind="purchase") for n in range(1)]
    states = {}
    plans.events(states, [replace_item(ordinary[0], n) for n in range(MARKED + 50)], 1e9)
    assert len(states["u"].taken) == MARKED


def replace_item(one: Event, n: int) -> Event:
    return Event("u", f"{n:036}", float(n), one.event_type, f"e{n}", n, 1.0)
