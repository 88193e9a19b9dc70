import numpy as np
import pytest

from benchmarks.experiment import run as users
from models.measuring.uplift import confidence, log_wealth, pseudo_outcomes, users_needed

ALPHA = 0.05


def population(rng: np.random.Generator, shape: tuple[int, ...], mean: float = 0.03) -> np.ndarray:
    """Rewards of very different users, whose events are dependent."""
    hits, events, worth = users.population(rng, shape, mean)
    return hits / events * worth


def ever_excluded(rewards, control, share, truth: float) -> float:
    """Share of experiments (rows) whose interval excludes `truth` after any of their users."""
    wrong = np.zeros(len(rewards), dtype=bool)
    for row in range(len(rewards)):
        phi = pseudo_outcomes(rewards[row], control[row], share)
        wrong[row] = any((log_wealth(phi, truth, share, side) >= np.log(2 / ALPHA)).any() for side in (1, -1))
    return float(wrong.mean())


def allowed(runs: int) -> float:
    """The share of errors that a true rate of α exceeds once in 1,000 times."""
    return ALPHA + 3.09 * (ALPHA * (1 - ALPHA) / runs) ** 0.5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_looking_after_every_user_keeps_the_level(share):
    rng = np.random.default_rng(5)
    rewards = population(rng, (300, 1000))
    control = rng.random(rewards.shape) < share
    assert ever_excluded(rewards, control, share, 0.0) <= allowed(300)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_two_thousand_experiments_of_three_thousand_users_keep_the_level(share):
    rng = np.random.default_rng(6)
    rewards = population(rng, (2000, 3000))
    control = rng.random(rewards.shape) < share
    assert ever_excluded(rewards, control, share, 0.0) <= allowed(2000)
    # Sanity check: a fixed-sample interval with the same number of looks is wrong far more often.
    treated, held = np.cumsum(~control, axis=1), np.cumsum(control, axis=1)
    with np.errstate(all="ignore"):
        means = [np.cumsum(rewards * arm, axis=1) / n for arm, n in ((~control, treated), (control, held))]
        spread = [np.cumsum(rewards**2 * arm, axis=1) / n - mean**2
                  for arm, n, mean in ((~control, treated, means[0]), (control, held, means[1]))]
        z = (means[0] - means[1]) / np.sqrt(spread[0] / treated + spread[1] / held)
    assert (np.abs(z[:, 200:]) > 1.96).any(axis=1).mean() > 4 * ALPHA


@pytest.mark.slow
def test_a_true_uplift_is_covered_at_every_look():
    rng = np.random.default_rng(7)
    for share, uplift in ((0.1, 0.05), (0.5, -0.02)):
        rewards = population(rng, (1000, 2000), mean=0.06)
        control = rng.random(rewards.shape) < share
        lucky = rng.random(rewards.shape)
        up = np.where(lucky < uplift / (1 - 0.06 * 0.645), 1.0, rewards)  # adds `uplift` on average
        down = np.where(lucky < -uplift / (0.06 * 0.645), 0.0, rewards)
        treated = up if uplift > 0 else down
        truth = float((treated - rewards).mean())
        assert truth == pytest.approx(uplift, abs=0.002)
        assert ever_excluded(np.where(control, rewards, treated), control, share, truth) <= allowed(1000)


def test_a_change_in_both_arms_is_not_an_effect():
    # A holiday: everybody's reward triples halfway, in both arms.
    rng = np.random.default_rng(8)
    rewards = population(rng, (300, 1000))
    rewards[:, 500:] = np.minimum(1.0, 3 * rewards[:, 500:])
    control = rng.random(rewards.shape) < 0.2
    assert ever_excluded(rewards, control, 0.2, 0.0) <= allowed(300)


def test_a_real_effect_is_detected_at_about_the_forecast_time():
    rng = np.random.default_rng(9)
    found = []
    for _ in range(40):
        rewards = population(rng, (12_000,))
        control = rng.random(12_000) < 0.5
        lifted = np.where(control, rewards, np.where(rng.random(12_000) < 0.02, 1.0, rewards))
        phi = pseudo_outcomes(lifted, control, 0.5)
        crossed = np.flatnonzero(log_wealth(phi, 0.0, 0.5, 1) >= np.log(2 / ALPHA))
        found.append(crossed[0] if len(crossed) else np.inf)
    assert np.mean(np.isfinite(found)) >= 0.95
    null = population(rng, (12_000,))
    phi = pseudo_outcomes(null, rng.random(12_000) < 0.5, 0.5)
    forecast = users_needed(phi, 0.5, 0.0197)
    assert 0.5 < np.median(found) / forecast < 2
    assert users_needed(phi, 0.5, 0.01) > 2 * forecast
    assert users_needed(phi[:0], 0.5, 0.01) == float("inf")


@pytest.mark.parametrize(("share", "widest"), [(0.5, 2.1), (0.1, 3.0)])
def test_the_interval_is_usefully_narrow(share, widest):
    """Compared with a fixed-sample interval at 3,000 users, whose half-width is 1.96 standard errors."""
    rng = np.random.default_rng(10)
    ratios = []
    for _ in range(5):
        rewards = population(rng, (3000,))
        control = rng.random(3000) < share
        (now,) = confidence(rewards, control, share)
        once = 1.96 * (rewards[control].var() / control.sum() + rewards[~control].var() / (~control).sum()) ** 0.5
        assert now.uplift is not None
        assert now.low < now.uplift < now.high
        ratios.append((now.high - now.low) / 2 / once)
    assert np.mean(ratios) < widest


def test_interval_ends_are_where_the_wealth_crosses_the_threshold():
    rng = np.random.default_rng(11)
    rewards, control = rng.random(500), rng.random(500) < 0.3
    for now in confidence(rewards, control, 0.3, at=np.array([1, 10, 100, 500])):
        phi = pseudo_outcomes(rewards, control, 0.3)[:now.users]
        for end, side in ((now.low, 1), (now.high, -1)):
            if abs(end) < 1:
                assert log_wealth(phi, end, 0.3, side)[-1] >= np.log(2 / ALPHA)
                assert log_wealth(phi, end + side * 2e-6, 0.3, side)[-1] < np.log(2 / ALPHA)
    swapped = confidence(rewards, ~control, 0.7)[0]
    now = confidence(rewards, control, 0.3)[0]
    assert (swapped.low, swapped.high) == pytest.approx((-now.high, -now.low), abs=2e-6)


def test_without_users_the_interval_is_everything():
    (none,) = confidence(np.zeros(0), np.zeros(0, bool), 0.1)
    assert (none.users, none.uplift, none.low, none.high) == (0, None, -1.0, 1.0)
    (one,) = confidence(np.ones(1), np.ones(1, bool), 0.1)
    assert (one.uplift, one.low, one.high) == (None, -1.0, 1.0)


@pytest.mark.parametrize(("rewards", "share"), [([1.1], 0.1), ([-0.1], 0.1), ([0.5], 0.0), ([0.5], 1.0)])
def test_invalid_rewards_and_shares_are_rejected(rewards, share):
    with pytest.raises(ValueError, match="must lie"):
        pseudo_outcomes(np.array(rewards), np.zeros(1, bool), share)


def test_no_bet_can_lose_everything():
    for share in (0.05, 0.5, 0.95):
        for rewards in (np.ones(50), np.zeros(50), np.r_[np.ones(49), 0.0], np.r_[np.zeros(49), 1.0]):
            for control in (np.ones(50, bool), np.zeros(50, bool)):
                phi = pseudo_outcomes(rewards, control, share)
                for delta, side in ((-1, 1), (-1, -1), (1, 1), (1, -1)):
                    assert np.isfinite(log_wealth(phi, delta, share, side)).all()
