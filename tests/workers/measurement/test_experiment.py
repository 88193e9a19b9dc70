import numpy as np
import pytest

from schemas.errors import FreshetError
from schemas.events import BehaviourEvent
from schemas.experiment import arm
from schemas.messages import Recommendation, ScoredItem
from schemas.settings import ExperimentSettings
from workers.measurement.experiment import RunningExperiment, chosen, fold

SPRING = ExperimentSettings("spring", 0.5)
USERS = [f"u{number}" for number in range(400)]
HELD = [user for user in USERS if arm(user, "spring", 0.5) == "control"]
TREATED = [user for user in USERS if arm(user, "spring", 0.5) == "treatment"]


def offer(user: str, items: str, *, at: float = 0.0, count: int = 1, ranked: float = 0.0, caused: float = 0.0,
          experiment: str = "spring") -> Recommendation:
    return Recommendation(
        user_id=user, items=[ScoredItem(item_id=item, score=-1.0) for item in items], reference=[], source="reference",
        fallback="control", reason="event", lagrange=None, kl=0, epsilon=0, knowledge_version=0, knowledge_age_s=None,
        knowledge_behind=None, model_version="m", event_time=at, count=count, caused_at=caused, requested_at=ranked,
        ranked_at=ranked, experiment=experiment, arm=arm(user, experiment, 0.5))


def trial(window_s: float = 100.0, reward: str = "hit") -> RunningExperiment:
    return RunningExperiment(SPRING, window_s, reward)  # type: ignore[arg-type]


def test_a_users_reward_is_the_mean_over_their_window() -> None:
    watched = trial()
    user = HELD[0]
    watched.add_event(user, "a", "e0", 0.0)  # before the first recommendation
    watched.add_recommendation(offer(user, "abc", at=0.0))
    watched.add_event(user, "a", "e1", 10.0)
    watched.add_event(user, "a", "e1", 10.0)  # sent twice
    watched.add_recommendation(offer(user, "xyz", at=10.0, count=2))
    watched.add_recommendation(offer(user, "abc", at=10.0, count=1))  # late, and it includes fewer events
    watched.add_event(user, "z", "e2", 20.0)
    watched.add_event(user, "b", "e3", 99.9)
    assert watched.closed == []
    watched.add_event(user, "z", "e4", 100.0)  # the window is over
    (outcome,) = watched.closed
    assert (outcome.control, outcome.entered_at, outcome.events) == (True, 0.0, 3)
    assert outcome.reward == pytest.approx(2 / 3)
    watched.add_recommendation(offer(user, "abc", at=200.0, count=9))  # a user enters only once
    watched.add_event("other", "z", "e5", 1000.0)
    assert len(watched.closed) == 1


def test_a_user_enters_with_the_first_list_of_their_own() -> None:
    """A visitor's list has the event time 0: their window closed before their first event."""
    watched, user = trial(), HELD[0]
    watched.add_recommendation(offer(user, "abc", count=0).model_copy(update={"source": "popular"}))
    watched.add_event(user, "a", "e0", 1e9)
    watched.add_recommendation(offer(user, "xyz", at=1e9))
    watched.add_event(user, "z", "e1", 1e9 + 1)
    watched.add_event("other", "z", "e2", 1e9 + 1000)
    assert [(one.events, one.reward, one.entered_at) for one in watched.closed] == [(1, 1.0, 1e9)]


def test_a_return_is_no_success_of_a_list() -> None:
    watched, user = trial(), HELD[0]
    fold(watched, [(0.0, offer(user, "abc")), *[
        (1.0, BehaviourEvent(user_id=user, item_id=item, event_time=1.0, event_type=kind, event_id=item + kind))
        for item, kind in (("a", "return"), ("b", "impression"), ("z", "view"))],
        (9.0, BehaviourEvent(user_id="other", item_id="z", event_time=1000.0))])
    assert (watched.closed[0].events, watched.closed[0].reward) == (1, 0.0)


def test_ndcg_rewards_depend_on_the_rank() -> None:
    watched = trial(reward="ndcg")
    watched.add_recommendation(offer("u1", "abc"))
    watched.add_event("u1", "c", "e1", 1.0)
    watched.add_event("u2", "c", "e2", 1000.0)
    assert watched.closed[0].reward == pytest.approx(0.5)


def test_users_without_events_have_reward_zero_and_windows_close_in_order_of_entry() -> None:
    watched = trial()
    for number, user in enumerate(USERS[:10]):
        watched.add_recommendation(offer(user, "abc", at=float(number)))
    watched.add_event(USERS[3], "a", "e", 50.0)
    watched.add_event("late", "a", "e", 104.0)
    assert [outcome.entered_at for outcome in watched.closed] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [outcome.reward for outcome in watched.closed] == [0, 0, 0, 1, 0]
    assert watched.figures()["open_users"] == 5


def test_an_old_event_time_does_not_open_or_keep_open_a_window() -> None:
    watched = trial()
    watched.add_event("x", "a", "e0", 1000.0)
    watched.add_recommendation(offer(HELD[0], "a", at=5.0))  # enters at 1000, the largest event time so far
    watched.add_event(HELD[0], "a", "e1", 6.0)
    watched.add_event("x", "a", "e2", 1099.0)
    assert watched.closed == []
    watched.add_event("x", "a", "e3", 1100.0)
    assert watched.closed[0].reward == 1.0


def test_only_recommendations_of_the_experiment_count() -> None:
    watched = trial()
    watched.add_recommendation(offer("u1", "abc", experiment=""))
    watched.add_event("u1", "a", "e1", 1.0)
    watched.add_recommendation(offer("u1", "abc"))
    watched.add_recommendation(offer("u1", "abc", experiment="", count=2))  # switched off
    watched.add_event("u1", "a", "e2", 2.0)
    watched.add_event("x", "a", "e3", 500.0)
    assert [(user.events, user.reward) for user in watched.closed] == [(0, 0.0)]


def test_an_event_is_paired_with_the_last_recommendation_before_it() -> None:
    user = TREATED[0]
    watched = trial()
    fold(watched, [
        # ranked 2 s after its event by the clock of the ranking worker, or 1 s before it by a clock that is wrong
        (0.0, offer(user, "c", count=3, caused=20.0, ranked=19.0, at=20.0)),
        (0.0, offer(user, "a", count=1, caused=10.0, ranked=10.5, at=10.0)),
        (20.0, BehaviourEvent(user_id=user, item_id="c", event_time=20.0)),  # caused "c", so it is too early for it
        (15.0, BehaviourEvent(user_id=user, item_id="a", event_time=15.0)),
        (10.0, BehaviourEvent(user_id=user, item_id="a", event_time=10.0)),
        (21.0, BehaviourEvent(user_id=user, item_id="c", event_time=21.0)),
        (99.0, BehaviourEvent(user_id="x", item_id="c", event_time=500.0)),
    ])
    (outcome,) = watched.closed
    assert (outcome.events, outcome.reward) == (3, pytest.approx(2 / 3))


def test_a_control_share_other_than_the_stacks_is_an_error() -> None:
    watched = RunningExperiment(ExperimentSettings("spring", 0.01))
    other = next(user for user in HELD if arm(user, "spring", 0.01) == "treatment")
    with pytest.raises(FreshetError, match="FRESHET_EXPERIMENT_CONTROL"):
        watched.add_recommendation(offer(other, "abc"))


@pytest.mark.parametrize(("settings", "found", "message"), [
    (ExperimentSettings(), [], "FRESHET_EXPERIMENT_NAME"),
    (ExperimentSettings("a", 0.0), ["a"], "CONTROL is 0"),
    (ExperimentSettings("a"), ["b"], "belongs to experiment 'a'; there are b"),
    (ExperimentSettings(), ["b", "a"], "several experiments: a, b"),
])
def test_no_experiment_to_report(settings: ExperimentSettings, found: list[str], message: str) -> None:
    with pytest.raises(FreshetError, match=message):
        chosen(settings, found)


def test_the_experiment_is_the_one_named_or_the_only_one() -> None:
    assert chosen(ExperimentSettings("b", 0.3), ["a", "b"]) == ExperimentSettings("b", 0.3)
    assert chosen(ExperimentSettings("", 0.3), ["a"]) == ExperimentSettings("a", 0.3)


def stream(rng: np.random.Generator, users: int, control_hit: float, treated_hit: float, tag: str) -> RunningExperiment:
    """Run a whole experiment through `fold`. Each user repeats one behaviour; results are read as users enter."""
    watched = RunningExperiment(ExperimentSettings("spring", 0.5), window_s=50.0, reward="hit")
    events = []
    for number in range(users):
        user = f"{tag}-{number}"
        mean = control_hit if arm(user, "spring", 0.5) == "control" else treated_hit
        habit = rng.beta(0.5, 0.5 / mean - 0.5)
        events += [(number + 1 + k * rng.uniform(1, 10), user, "a" if rng.random() < habit else "z", k)
                   for k in range(rng.integers(0, 8))]
    offers = [(float(number), f"{tag}-{number}", "", -1) for number in range(users)]
    for at, user, item, k in sorted(events + offers):
        if k < 0:
            watched.add_recommendation(offer(user, "abc", at=at))
        else:
            watched.add_event(user, item, f"{user}-{k}", at)
    return watched


def test_figures_with_and_without_an_effect() -> None:
    rng = np.random.default_rng(3)
    found = stream(rng, 1500, 0.1, 0.3, "x").figures(effect=0.05)
    assert found["arms"]["control"]["users"] + found["arms"]["treatment"]["users"] == found["users"] > 1400
    assert found["uplift"] == pytest.approx(found["arms"]["treatment"]["reward"] - found["arms"]["control"]["reward"])
    assert found["interval"][0] > 0
    assert "helps" in found["conclusion"]
    assert found["forecast"]["users_needed"] > 100
    assert found["users_per_day"] == pytest.approx(86_400, rel=0.01)
    assert [point["users"] for point in found["path"]][-1] == found["users"]
    none = stream(rng, 300, 0.2, 0.2, "y").figures()
    assert none["interval"][0] < 0 < none["interval"][1]
    assert RunningExperiment(SPRING).figures()["interval"] == [-1.0, 1.0]


@pytest.mark.slow
def test_experiments_without_an_effect_keep_the_error_probability() -> None:
    from models.measuring.uplift import log_wealth, pseudo_outcomes

    rng = np.random.default_rng(4)
    wrong = 0
    for number in range(250):
        closed = stream(rng, 400, 0.15, 0.15, f"run{number}").closed
        rewards, held = np.array([user.reward for user in closed]), np.array([user.control for user in closed])
        phi = pseudo_outcomes(rewards, held, 0.5)
        wrong += any((log_wealth(phi, 0.0, 0.5, side) >= np.log(40)).any() for side in (1, -1))
    assert wrong / 250 <= 0.05 + 3.09 * (0.05 * 0.95 / 250) ** 0.5
