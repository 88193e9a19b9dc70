import numpy as np

from models.measuring.intervals import paired_interval, resampled, seeds_interval


def test_interval_covers_the_truth_and_resamples_users() -> None:
    random = np.random.default_rng(1)
    users = [str(user) for user in range(60) for _ in range(20)]
    base = random.random(1200)
    better = base + 0.1 + random.normal(0, 0.05, 1200)
    point, low, high = paired_interval(users, better - base)
    assert low < 0.1 < high
    assert low < point < high
    # However many events one user has, the user is one observation of 60: the interval must reach zero.
    gains = [1.0 if user == "0" else 0.0 for user in users]
    _, low, _ = paired_interval(users, np.array(gains))
    assert low == 0.0


def test_the_interval_narrows_with_users_and_is_reproducible():
    random = np.random.default_rng(0)
    few = [random.normal(0.1, 1, size=random.integers(1, 20)) for _ in range(40)]

    def interval(groups: list[np.ndarray]) -> tuple[float, float, float]:
        user = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return paired_interval(user, np.concatenate(groups), seed=1)

    mean, low, high = interval(few)
    assert low < mean < high
    assert mean == np.concatenate(few).mean()
    assert interval(few) == (mean, low, high)
    _, low_of_many, high_of_many = interval(few * 9)
    assert high_of_many - low_of_many < high - low
    assert paired_interval(np.zeros(0, np.int64), np.zeros(0)) == (0.0, 0.0, 0.0)


def test_every_draw_has_the_original_number_of_users():
    place, drawn = resampled(["b", "a", "b", "c"], draws=50)
    assert place.tolist() == [1, 0, 1, 2]
    assert drawn.shape == (50, 3)
    assert (drawn.sum(axis=1) == 3).all()
    assert resampled([])[1].shape == (2000, 0)


def covered(seeds, spread_of_training, trials=300):
    """Return how often each interval covers the true gain 0: over users alone, and over users and training."""
    random = np.random.default_rng(3)
    plain = full = 0
    for _ in range(trials):
        user = np.repeat(np.arange(60), 3)
        of_users = random.normal(0, 1, 60)[user]
        gains = [of_users + random.normal(0, spread_of_training) + random.normal(0, 0.5, 180) for _ in range(seeds)]
        _, low, high = paired_interval(user, np.mean(gains, axis=0), draws=300)
        plain += low <= 0 <= high
        _, low, high = seeds_interval([user] * seeds, gains, draws=300)
        full += low <= 0 <= high
    return plain / trials, full / trials


def test_intervals_over_seeds_include_the_variation_of_training():
    plain, full = covered(3, 0.4)
    assert plain < 0.85  # one training's luck is taken for knowledge
    assert full > 0.92
    _, calm = covered(3, 0.0)
    assert calm > 0.92


def test_one_seed_gives_the_interval_over_users_and_none_gives_zero():
    user, gain = np.arange(50) // 2, np.random.default_rng(0).normal(size=50)
    assert seeds_interval([user], [gain]) == paired_interval(user, gain)
    assert seeds_interval([], []) == (0.0, 0.0, 0.0)


def test_seeds_may_have_other_events():
    users, gains = [np.arange(40), np.arange(10, 50)], [np.full(40, 0.1), np.full(40, 0.3)]
    mean, low, high = seeds_interval(users, gains)
    assert abs(mean - 0.2) < 1e-12
    assert low < 0.1
    assert high > 0.3
