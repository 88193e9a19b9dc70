import numpy as np

from models.measuring.intervals import paired_interval, resampled


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
