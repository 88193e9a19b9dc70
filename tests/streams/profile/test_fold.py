"""Folding a batch equals folding its events one by one; duplicates change nothing; the order is by event time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.detection.drift import Detector
from streams.profile.fold import FEW_USERS, Event, fold
from streams.profile.state import UserState, dumps, loads
from tests.streams.cases import DIM, event, item_vectors, settings

VECTORS = item_vectors()
STATE = settings().state
DETECTOR = Detector(mean=0.4, sd=0.2, prior=5.0, slack=0.2, threshold=3.0)


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """Draw arrivals of three users: mostly in order; late ones, ties, duplicates, unknown items, all effects."""
    kinds = draw(st.sampled_from([["view"], ["view", "view", "view", "purchase", "return", "impression", "lend"]]))
    n = draw(st.integers(1, 60))
    out: list[Event] = []
    for k in range(n):
        if out and draw(st.integers(0, 5)) == 0:
            again = copy.copy(draw(st.sampled_from(out)))
            again.offset = k
            out.append(again)
            continue
        late = draw(st.sampled_from([0, 0, 0, 0, 1, 3, 30]))
        time = float(max(0, k // 2 - late))
        out.append(event(k, draw(st.sampled_from("abc")), item=draw(st.integers(0, 22)), time=time,
                         kind=draw(st.sampled_from(kinds))))
    return out


def run(states: dict[str, UserState], events: list[Event]) -> None:
    groups: dict[str, list[Event]] = {}
    for arrival in events:
        groups.setdefault(arrival.user_id, []).append(arrival)
    for user in groups:
        states.setdefault(user, UserState())
    fold(states, groups, VECTORS, STATE, DETECTOR)


def with_knowledge() -> dict[str, UserState]:
    anchor = VECTORS.vectors[3].tobytes()
    return {user: UserState(anchor=anchor, knowledge_version=1) for user in "ab"}


def encoded(states: dict[str, UserState]) -> dict[str, bytes]:
    return {user: dumps(state) for user, state in states.items()}


@given(streams(), st.data(), st.sampled_from([0, 1, FEW_USERS]))
def test_a_batch_equals_its_events_one_by_one(events: list[Event], data: st.DataObject, few: int) -> None:
    batch, single, in_parts = with_knowledge(), with_knowledge(), with_knowledge()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.profile.fold.FEW_USERS", few)  # vectorised or not: same bits
        run(batch, events)
    for next_event in events:
        run(single, [next_event])
    cut = data.draw(st.integers(0, len(events)))
    run(in_parts, events[:cut])
    run(in_parts, events[cut:])
    assert encoded(batch) == encoded(single) == encoded(in_parts)


@given(streams(), st.data())
def test_redelivered_events_change_nothing(events: list[Event], data: st.DataObject) -> None:
    states = with_knowledge()
    run(states, events)
    before = copy.deepcopy(states)
    start = data.draw(st.integers(0, len(events)))
    run(states, events[start:])  # as after a crash
    for user, state in states.items():
        state.duplicates = before[user].duplicates
    assert encoded(states) == encoded(before)


@given(st.permutations(list(range(6))))
def test_history_and_interests_follow_event_time_not_arrival(order: list[int]) -> None:
    arrived, ordered = {}, {}
    run(arrived, [event(n, offset=k) for k, n in enumerate(order)])
    run(ordered, [event(n) for n in range(6)])
    a, b = arrived["u"], ordered["u"]
    assert a.items == b.items
    assert a.times == b.times == [float(n) for n in range(6)]
    assert a.count == b.count == 6
    np.testing.assert_allclose(np.frombuffer(a.short, "<f4"), np.frombuffer(b.short, "<f4"), atol=1e-6)
    np.testing.assert_allclose(np.frombuffer(a.long, "<f4"), np.frombuffer(b.long, "<f4"), atol=1e-6)


@given(streams())
def test_a_state_is_bounded_and_ordered(events: list[Event]) -> None:
    states: dict[str, UserState] = {}
    run(states, events)
    for state in states.values():
        assert len(state.items) == len(state.times) == len(state.types) == len(state.counts) <= STATE.history
        assert state.times == sorted(state.times)
        assert len(state.seen) <= STATE.seen
        assert len(state.event_ids) <= STATE.event_ids
        assert len(state.short) == len(state.long) == (4 * DIM if state.count else 0)
        for item, time in zip(state.items, state.times, strict=True):
            assert time > state.against.get(item, -1.0)
        assert loads(dumps(state)) == state


def test_interest_is_the_exponential_average_of_unit_vectors() -> None:
    states: dict[str, UserState] = {}
    run(states, [event(n) for n in range(5)])
    keep = 0.5 ** (1 / STATE.short_half_life)
    expected = sum((1 - keep) * keep ** (4 - n) * VECTORS.vectors[n] for n in range(5))
    np.testing.assert_allclose(np.frombuffer(states["u"].short, "<f4"), expected, atol=1e-6)


def test_an_event_older_than_a_full_history_is_only_counted_and_marked_as_seen() -> None:
    states: dict[str, UserState] = {}
    run(states, [event(n) for n in range(10, 16)])
    before = list(states["u"].items)
    run(states, [event(99, item=1, time=2.0)])
    state = states["u"]
    assert (state.items, state.count, state.too_late) == (before, 6, 1)
    assert list(state.seen) == ["i1"]


def test_items_that_leave_the_history_are_stored_once_as_seen() -> None:
    states: dict[str, UserState] = {}
    run(states, [event(n, item=n % 3) for n in range(12)])
    assert sorted(states["u"].seen) == ["i0", "i1", "i2"]


def test_an_old_event_with_a_forgotten_id_and_equal_time_is_still_a_duplicate() -> None:
    events = [event(n, time=5.0) for n in range(40)]  # more events in one second than stored ids
    states: dict[str, UserState] = {}
    run(states, events)
    run(states, events)
    assert states["u"].count == 40


def test_events_of_a_recreated_source_topic_are_applied() -> None:
    states: dict[str, UserState] = {}
    run(states, [event(n) for n in range(30)])
    run(states, [event(100, offset=0)])
    assert (states["u"].count, states["u"].offset) == (31, 0)


def test_unknown_items_are_counted_and_do_not_change_interests() -> None:
    states: dict[str, UserState] = {}
    run(states, [event(1, item=500)])
    assert states["u"].unknown_items == 1
    assert states["u"].items == ["i500"]
    assert not np.frombuffer(states["u"].short, "<f4").any()
