from __future__ import annotations

import numpy as np
import pytest

from models.aligning.publication import FEWEST, Paired, decide_publication
from models.measuring.intervals import paired_interval


def paired(change: float, users: int = 20, each: int = 5, noise: float = 0.1, seed: int = 0) -> Paired:
    rng = np.random.default_rng(seed)
    before = rng.normal(size=users * each)
    return Paired(np.repeat(np.arange(users), each), before, before + change + noise * rng.normal(size=users * each))


def decide(contradicted: Paired, untouched: Paired, bound: float = 0.05) -> tuple[bool, str]:
    verdict = decide_publication(contradicted, untouched, bound=bound, clip=3.0)
    return verdict.publish, verdict.reason


def test_a_significant_gain_without_loss_is_published() -> None:
    assert decide(paired(0.2), paired(0.0, seed=1))[0]


@pytest.mark.parametrize(("contradicted", "untouched", "why"), [
    (paired(0.0, noise=1.0), paired(0.0), "no sure gain"),
    (paired(-0.2), paired(0.0), "no sure gain"),
    (paired(0.2), paired(-0.2), "may fall by more than"),
    (paired(0.2), paired(0.0, users=10, noise=1.0), "may fall by more than"),  # too noisy to decide
    (paired(0.2, users=FEWEST - 1), paired(0.0), "held-out contradicted users"),
    (paired(0.2), paired(0.0, users=0), "only 0 held-out untouched users"),
    (paired(float("nan")), paired(0.0), "not finite"),
    (paired(0.2), paired(float("inf")), "not finite"),
])
def test_other_outcomes_are_rejected_with_a_reason(contradicted: Paired, untouched: Paired, why: str) -> None:
    publish, reason = decide(contradicted, untouched)
    assert not publish
    assert why in reason


def test_one_event_does_not_decide() -> None:
    part = paired(-0.05, noise=0.01)
    lucky = Paired(part.user, part.before, part.after.copy())
    lucky.after[0] = 1e6
    assert not decide(lucky, paired(0.0))[0]


def test_rejects_useless_adapters_nineteen_times_in_twenty() -> None:
    """40 users without a true change: published at most as often as a two-sided 95% interval allows, up to chance."""
    published = sum(decide(paired(0.0, users=40, noise=0.5, seed=seed), paired(0.0, noise=0.01))[0]
                    for seed in range(200))
    assert published <= 14  # 5 are expected (2.5%); more than 14 of 200 have a probability of 1e-4


def test_interval_is_over_users_not_events() -> None:
    user = np.repeat(np.arange(10), 100)
    gain = np.repeat(np.random.default_rng(0).normal(size=10), 100)
    _, low, high = paired_interval(user, gain)
    assert high - low > 0.6  # the standard error is 0.32; with 1,000 independent events it would be 0.03
    assert paired_interval(user[:0], gain[:0]) == (0.0, 0.0, 0.0)
