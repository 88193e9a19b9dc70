"""The price keeps the budget and the queue limit, lets no user starve, and is 0 with spare capacity."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.calibration.rehearsal import answer
from streams.decisions.planner import States
from streams.decisions.price import (
    BURST,
    LOST_S,
    MAX_QUEUE_PRICE,
    MIN_QUEUE,
    QUEUE_LIMIT,
    TARGET_S,
    Limits,
    Market,
    admit,
    advance,
    record_answer,
)
from tests.streams.cases import CALIBRATION, event, planner

QUIET = CALIBRATION.model_copy(update={"ttl_s": 1e9, "drift_threshold": 1e6})


def offer(market: Market, limits: Limits, gains: np.ndarray, now: float = 0.0, *, first: int = 0,
          forced: np.ndarray | None = None, due: bool = True) -> np.ndarray:
    names = [f"u{first + n}" for n in range(len(gains))]
    no = np.zeros(len(gains), dtype=bool)
    return admit(market, limits, names, np.asarray(gains), no if forced is None else forced,
                 np.full(len(gains), due), now)


def busy(market: Market, users: int = int(MIN_QUEUE)) -> None:
    market.outstanding.update({f"busy{n}": 0.0 for n in range(users)})


def batches(seed: int) -> list[tuple[int, np.ndarray, float]]:
    """Return up to 60 batches: number of events, gains of candidates, seconds since the last batch."""
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.001, 0.1, 1.0])
    return [(int(rng.integers(300)), np.clip(rng.normal(scale=scale, size=rng.integers(60)), -1, 1),
             float(rng.exponential(10.0))) for _ in range(rng.integers(1, 60))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.001, 0.5))
def test_calls_never_exceed_the_budget_by_more_than_a_burst(seed: int, budget: float) -> None:
    market, limits = Market(), Limits(budget)
    for events, gains, _ in batches(seed):
        advance(market, limits, events, 0.0)
        admitted = offer(market, limits, gains)
        for name in [f"u{n}" for n in np.flatnonzero(admitted)]:
            record_answer(market, name)
        assert market.calls <= budget * market.events + BURST
        assert market.price >= 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([None, 0.05]), st.integers(0, 30))
def test_queue_and_price_are_bounded(seed: int, budget: float | None, speed: int) -> None:
    market, limits, now = Market(), Limits(budget), 0.0
    for turn, (events, gains, wait) in enumerate(batches(seed)):
        now += wait
        advance(market, limits, events, now)
        for name in list(market.outstanding)[:speed]:
            record_answer(market, name)
        before = len(market.outstanding)
        offer(market, limits, gains, now, first=60 * turn)
        assert len(market.outstanding) <= max(before, QUEUE_LIMIT * market.target)
        assert 0 <= market.queue_price <= MAX_QUEUE_PRICE
        assert market.target >= MIN_QUEUE


def test_the_budget_is_used_up_on_the_largest_gains() -> None:
    rng = np.random.default_rng(0)
    market, limits = Market(), Limits(0.03)
    admitted, offered = [], []
    for turn in range(20_000):
        advance(market, limits, 1, float(turn))
        gain = rng.exponential(0.02, size=1)
        if offer(market, limits, gain, float(turn), first=turn, due=False)[0]:
            admitted.append(gain[0])
            record_answer(market, f"u{turn}")
        offered.append(gain[0])
    assert 0.97 * 600 <= len(admitted) <= 600 + BURST
    best = np.sort(offered)[-600:].mean()
    assert np.mean(admitted[100:]) > 0.9 * best


def test_without_a_budget_and_with_a_short_queue_every_due_user_is_admitted() -> None:
    market = Market()
    assert offer(market, Limits(), np.array([0.3, 0.0, -0.5])).all()
    assert not offer(market, Limits(), np.array([0.0, -0.5]), first=9, due=False).any()
    assert market.price == 0


def test_the_queue_price_rises_with_a_long_queue_and_falls_with_a_short_one() -> None:
    market, limits = Market(), Limits()
    advance(market, limits, 0, 0.0)
    busy(market, 900)
    prices = []
    for second in range(1, 60):
        advance(market, limits, 0, float(second))
        prices.append(market.price)
    assert prices == sorted(prices)
    assert prices[-1] > 0.3
    assert list(offer(market, limits, np.array([0.01, 0.9]), 60.0)) == [False, False]  # full: only forced users
    assert list(offer(market, limits, np.array([0.01, 0.9]), 60.0, forced=np.array([True, False]))) == [True, False]
    for name in list(market.outstanding)[20:]:
        record_answer(market, name)
    assert list(offer(market, limits, np.array([0.01, 0.9]), 60.0, first=5)) == [False, True]
    market.outstanding.clear()
    assert list(offer(market, limits, np.array([0.01]), 60.0)) == [True]  # an idle worker refuses no user
    advance(market, limits, 0, 60.0 + TARGET_S)
    for turn in range(4):
        advance(market, limits, 0, 120.0 + turn * TARGET_S)
    assert market.queue_price == 0


def test_the_target_follows_the_workers_speed_only_while_it_is_busy() -> None:
    market, limits = Market(), Limits()
    advance(market, limits, 0, 0.0)
    at_first = market.target
    for second in range(1, 200):
        advance(market, limits, 0, float(second))
    assert market.target == at_first
    busy(market, 400)
    for second in range(200, 400):  # two a second
        advance(market, limits, 0, float(second))
        for name in list(market.outstanding)[:2]:
            record_answer(market, name)
        busy(market, 400)
    assert market.target == pytest.approx(2 * TARGET_S, rel=0.2)
    for second in range(400, 800):  # no answers
        advance(market, limits, 0, float(second))
    assert market.target == MIN_QUEUE


def test_requests_much_older_than_an_answered_one_count_as_lost() -> None:
    market, limits = Market(), Limits()
    offer(market, limits, np.array([0.3]), 0.0, first=1)
    offer(market, limits, np.array([0.3]), 10.0, first=2)
    offer(market, limits, np.array([0.3]), LOST_S + 5.0, first=3)
    assert list(market.outstanding) == ["u1", "u2", "u3"]
    record_answer(market, "u3")
    assert list(market.outstanding) == ["u2"]


@pytest.mark.parametrize("step", [1, 2])
def test_a_due_user_is_refreshed_after_their_patience_at_any_price(step: int) -> None:
    stage, states = planner(QUIET), {}
    stage.limits = Limits(None, min_patience=7)
    assert stage.market is not None
    busy(stage.market, 2000)
    stage.market.queue_price = 99.0
    asked = []
    for n in range(0, 40, step):
        asked += stage.events(states, [event(k) for k in range(n, n + step)], 0.0).knowledge
    first_due = 3 if step == 1 else 4
    assert [(r.count, r.reason) for r in asked][:1] == [(first_due + 7 if step == 1 else first_due + 8, "cold_start")]
    assert states["u"].wanted_count == 0


def test_the_budget_holds_when_all_users_are_always_due() -> None:
    """All users' knowledge is stale all the time. The bound includes forced refreshes."""
    stage, states = planner(QUIET.model_copy(update={"ttl_s": 0.5}), calls_per_1000=40.0), {}
    market = stage.market
    assert market is not None
    rng = np.random.default_rng(4)
    users, asked = 40, 0
    gaps: dict[str, int] = {}
    for n in range(6_000):
        user = f"u{rng.integers(users)}"
        plan = stage.events(states, [event(n, user)], float(n))
        for request in plan.knowledge:
            asked += 1
            gaps[user] = max(gaps.get(user, 0), request.count - states[user].knowledge_count)
            stage.updates(states, [(answer(request), float(n))], float(n))
        assert asked == market.calls
        assert asked <= 0.04 * market.events + BURST + users
    # After 40 simultaneous cold starts the price takes some hundred events to fall.
    assert 0.8 * 240 <= asked <= 1.05 * 240
    # Waits: the cooldown, then patience.
    assert max(gaps.values()) <= stage.limits.patience + 5 + 1
    assert market.forced < asked / 2


def test_with_a_budget_knowledge_is_refreshed_before_a_threshold_is_crossed() -> None:
    stage, states = planner(QUIET, calls_per_1000=500.0), {}
    asked = []
    for n in range(40):
        for request in stage.events(states, [event(n)], float(n)).knowledge:
            asked.append((request.count, request.reason))
            stage.updates(states, [(answer(request), float(n))], float(n))
    assert asked[0] == (3, "cold_start")
    assert len(asked) > 2
    assert {reason for _, reason in asked[1:]} == {"stale"}
    assert len(asked) <= 0.5 * 40 + BURST


def test_backfill_and_redelivered_events_do_not_count_for_the_budget() -> None:
    stage, states = planner(QUIET, calls_per_1000=500.0), {}
    assert stage.market is not None
    stage.events(states, [event(n, backfill=True) for n in range(10)], 0.0)
    assert stage.market.events == 0
    for _ in range(2):
        stage.events(states, [event(n) for n in range(10, 14)], 0.0)
    assert (stage.market.events, stage.market.calls) == (4, 1)


def test_a_copied_market_makes_the_same_decisions() -> None:
    stage, states = planner(calls_per_1000=100.0), {}
    rng = np.random.default_rng(5)
    events = [event(n, f"u{rng.integers(9)}") for n in range(400)]

    def play(part: list, states: States) -> list:
        out = []
        for next_event in part:
            plan = stage.events(states, [next_event], next_event.event_time)
            out += plan.knowledge
            stage.updates(states, [(answer(r), next_event.event_time) for r in plan.knowledge], next_event.event_time)
        return out

    play(events[:200], states)
    market, saved = copy.deepcopy(stage.market), copy.deepcopy(states)
    once = play(events[200:], states)
    stage.market = market
    assert once == play(events[200:], saved)
    assert once


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_jump_of_the_wall_clock_moves_no_price(jump: float) -> None:
    """Set back by an hour, the queue's price stood still for that hour."""
    prices = []
    for shift in (0.0, jump):
        stage, states = planner(QUIET), {}
        assert stage.market is not None
        busy(stage.market, 900)
        for second in range(60):
            now = 1e9 + second + (shift if second > 20 else 0.0)
            stage.updates(states, [], now, float(second))
            prices.append((stage.market.price, len(stage.market.outstanding)))
    assert prices[:60] == prices[60:]
    assert prices[59][0] > prices[21][0] > 0


@pytest.mark.parametrize("jump", [-3600.0, 0.0])
def test_a_lost_request_is_repeated_although_the_clock_was_set_back(jump: float) -> None:
    stage, states = planner(QUIET), {}
    for n in range(3):
        plan = stage.events(states, [event(n)], 1e9, 0.0)
    assert [request.version for request in plan.knowledge] == [1]
    later = stage.events(states, [event(3)], 1e9 + 601.0 + jump, 601.0)
    assert [request.version for request in later.knowledge] == [2]
