"""The expected gain of a refresh: bounded, at first ordered like the priorities, learned from outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.messages import Judgement, Margin
from streams.calibration.rehearsal import answer
from streams.decisions.gain import FEATURES, FORGET, PRIOR, RIDGE, WINDOW, GainModel, refresh_features
from streams.decisions.planner import Planner, States
from streams.profile.state import UserState
from tests.streams.cases import CALIBRATION, event, planner

QUIET = CALIBRATION.model_copy(update={"ttl_s": 1e9, "drift_threshold": 1e6})
finite = st.floats(-1, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.lists(finite, min_size=len(PRIOR), max_size=len(PRIOR)), st.floats(-2, 2)), max_size=30),
       st.lists(finite, min_size=len(PRIOR), max_size=len(PRIOR)))
def test_expected_gains_are_finite_and_bounded(outcomes: list, asked: list[float]) -> None:
    model = GainModel()
    for features, outcome in outcomes:
        model.learn(features, outcome)
    (gain,) = model.expected(np.array([asked]))
    assert -1 <= gain <= 1
    assert model.weights[1] >= 0
    assert model.outcomes == len(outcomes)


@settings(max_examples=100, deadline=None)
@given(st.builds(
    UserState, count=st.integers(0, 10**6), cusum=st.floats(0, 1e9), trust=st.floats(0, 1),
    times=st.lists(st.floats(0, 4e9), max_size=6).map(sorted), knowledge_version=st.integers(0, 9),
    knowledge_event_time=st.floats(0, 4e9), log_wealth=st.sampled_from([[], [-9.0] * 3, [99.0, 0.0, 1.0]])),
    st.sampled_from([None, "cold_start", "drift", "contradiction", "stale"]))
def test_features_are_bounded(state: UserState, reason: str | None) -> None:
    state.last_refresh_count = state.count // 2
    (row,) = refresh_features([state], [reason], planner().policy, 0.05)
    assert len(row) == len(FEATURES)
    assert (np.abs(row) <= 1).all()


def test_without_outcomes_gains_are_ordered_like_priorities() -> None:
    policy = planner().policy
    steady = UserState(times=[0.0, 900.0], count=50, knowledge_version=1, knowledge_event_time=890.0)
    old = UserState(times=[0.0, 1900.0], count=50, knowledge_version=1, knowledge_event_time=0.0)
    crossed = UserState(times=[0.0, 900.0], count=50, knowledge_version=1, knowledge_event_time=890.0, cusum=5.01)
    wrong = UserState(times=[0.0, 900.0], count=50, knowledge_version=1, knowledge_event_time=890.0, trust=0.0)
    new = UserState(times=[0.0, 900.0], count=3)
    gains = GainModel().expected(refresh_features(
        [steady, old, crossed, new, wrong], [None, "stale", "drift", "cold_start", "contradiction"], policy, 0.05))
    assert list(gains) == sorted(gains)
    assert gains[0] > 0


def test_similar_unseen_items_have_a_higher_gain_than_scattered_ones() -> None:
    def state(short: list[float], count: int) -> UserState:
        return UserState(times=[0.0, 900.0], count=count, last_refresh_count=50, knowledge_version=1,
                         knowledge_event_time=890.0, short=np.array(short, "<f4").tobytes())

    policy = planner().policy
    few, alike, scattered = (state([0.9, 0.0], 52), state([0.9, 0.0], 60), state([0.2, 0.2], 60))
    gains = GainModel().expected(refresh_features([few, alike, scattered], [None] * 3, policy, 0.05))
    assert gains[1] > gains[0]
    assert gains[1] > gains[2]


def test_learning_is_ridge_regression_with_forgetting_towards_the_prior() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (3000, len(PRIOR)))
    x[:, 0] = 1.0
    truth = rng.normal(scale=0.2, size=len(PRIOR))
    truth[1] = 0.4
    y = x @ truth + 0.05 * rng.normal(size=3000)
    model = GainModel()
    for features, outcome in zip(x, y, strict=True):
        model.learn(features, outcome)
    age = FORGET ** np.arange(2999, -1, -1)
    moments = RIDGE * np.eye(len(PRIOR)) + (age[:, None] * x).T @ x
    direct = np.linalg.solve(moments, RIDGE * PRIOR + (age * y) @ x)
    np.testing.assert_allclose(model.weights, direct, atol=1e-9)
    assert np.linalg.norm(model.weights - truth) < 0.98 * np.linalg.norm(PRIOR - truth)  # slowly


def judge(stage: Planner, states: States, counts: range, value: float, version: int) -> None:
    margins = [Margin(event_id=f"e{c - 1}", item_id="i0", count=c, value=value, knowledge_version=version)
               for c in counts]
    stage.judgements(states, [Judgement(
        user_id="u", margins=margins, model_version="m1", event_time=1.0, judged_at=0.0)], 0.0)


@pytest.mark.parametrize("redelivered", [False, True])
def test_the_outcome_of_a_refresh_is_mean_margin_after_minus_before(redelivered: bool) -> None:
    stage, states = planner(QUIET.model_copy(update={"ttl_s": 100.0})), {}
    market = stage.market
    assert market is not None
    learned: list[tuple[list[float], float]] = []
    market.gain = RecordingGainModel(learned)
    (first,) = stage.events(states, [event(n) for n in range(3)], 0.0).knowledge
    stage.updates(states, [(answer(first, "m1"), 0.0)], 0.0)
    stage.events(states, [event(n) for n in range(3, 11)], 0.0)
    for counts in (range(4, 8), range(8, 10)):
        for _ in range(1 + redelivered):
            judge(stage, states, counts, 0.2, 1)  # bound 2 nats: 0.1 B
    assert [round(outcome, 9) for _, outcome in learned] == [0.1]  # cold start: 0 before
    (second,) = stage.events(states, [event(11, time=500.0)], 0.0).knowledge
    assert second.reason == "stale"
    judge(stage, states, range(10, 11), 0.2, 1)
    stage.updates(states, [(answer(second, "m1"), 0.0)], 0.0)
    judge(stage, states, range(11, 12), 9.0, 1)  # of the old knowledge: too late
    stage.events(states, [event(n, time=500.0 + n) for n in range(12, 20)], 0.0)
    judge(stage, states, range(13, 13 + WINDOW - 1), 1.0, 2)
    assert len(learned) == 1
    judge(stage, states, range(17, 20), 1.0, 2)
    assert [round(outcome, 9) for _, outcome in learned] == [0.1, 0.4]
    assert all(len(features) == len(PRIOR) for features, _ in learned)


class RecordingGainModel(GainModel):
    """A gain model that records its outcomes."""

    def __init__(self, learned: list[tuple[list[float], float]]) -> None:
        super().__init__()
        self.learned = learned

    def learn(self, features: list[float], outcome: float) -> None:
        self.learned.append((features, outcome))
        super().learn(features, outcome)
