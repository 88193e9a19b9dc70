"""The judge's guarantees on simulated users: errors within the level at any horizon, harm found in the documented time.

The margins come from benchmarks/judge/margins.py: their mean after clipping is exactly 0, the worst harmless case.
"""

from __future__ import annotations

from math import lgamma

import numpy as np
import pytest

from benchmarks.judge.margins import BOUND, NULLS, Margins, gaussian, planted
from benchmarks.judge.pooled import arrivals, codeword
from benchmarks.judge.tests import within
from streams.detection import trust
from streams.detection.pooled import Pool
from streams.detection.trust import HARM, HELP, first_crossings, judge

ALPHA = 0.05
USERS, HORIZONS = 10_000, (10, 30, 100, 300, 1000)


def binomial_bound(n: int, p: float, error: float = 1e-6) -> int:
    """Return the smallest k with P(Binomial(n, p) > k) ≤ error."""
    k = np.arange(n + 1)
    log = np.array([lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in k])
    pmf = np.exp(log + k * np.log(p) + (n - k) * np.log1p(-p))
    return int(np.flatnonzero(1 - np.cumsum(pmf) <= error)[0])


def test_the_binomial_bound_holds() -> None:
    draws = np.random.default_rng(0).binomial(1000, 0.05, 100_000)
    assert (draws > binomial_bound(1000, 0.05, 0.01)).mean() <= 0.0115
    assert (draws > binomial_bound(1000, 0.05, 0.01) - 1).mean() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("side", [HARM, HELP], ids=["harm", "help"])
@pytest.mark.parametrize("null", NULLS)
def test_at_most_a_share_alpha_of_harmless_users_is_found_at_any_horizon(null: str, side: int) -> None:
    """10,000 users, checked after each of 1,000 events; for the bet on help the margins change their sign."""
    margins = -side * NULLS[null](USERS, HORIZONS[-1], np.random.default_rng(11))
    clipped = np.clip(margins, -BOUND, BOUND)
    assert abs(clipped.mean()) < 5 * clipped.std() / np.sqrt(clipped.size), "the null's mean is 0 after clipping"
    first = first_crossings(margins, BOUND, ALPHA, side=side)
    for horizon in HORIZONS:
        found = int(((first >= 0) & (first < horizon)).sum())
        assert found <= binomial_bound(USERS, ALPHA), f"{found} of {USERS} within {horizon} events"


@pytest.mark.slow
@pytest.mark.parametrize("null", ["Gaussian", "stake chosen from the past"])
def test_the_level_holds_over_ten_times_as_many_events(null: str) -> None:
    margins = NULLS[null](2000, 10_000, np.random.default_rng(14))
    assert int((first_crossings(margins, BOUND, ALPHA) >= 0).sum()) <= binomial_bound(2000, ALPHA)


def test_the_bound_detects_an_invalid_test() -> None:
    """The likelihood ratio exceeds the level on harmless margins, so the test above can fail."""
    margins = gaussian(2000, 300, np.random.default_rng(5))
    found = int((np.cumsum(-margins, axis=1) >= np.log(1 / ALPHA)).any(axis=1).sum())
    assert found > binomial_bound(2000, ALPHA)
    slight_harm = first_crossings(margins - 0.05, BOUND, ALPHA)
    assert int((slight_harm >= 0).sum()) > binomial_bound(2000, ALPHA)


def test_the_level_holds_with_optional_stopping() -> None:
    """E[W] ≤ 1 at any stopping time; here each user stops when wealth reaches 2, else at the end."""
    margins = NULLS["skewed"](4000, 200, np.random.default_rng(7))
    path = trust.mixture(np.cumsum(trust.bets(margins.ravel(), BOUND).reshape(4000, 200, -1), axis=1))
    high = path >= np.log(2)
    stopped = np.where(high.any(axis=1), path[np.arange(4000), high.argmax(axis=1)], path[:, -1])
    wealth = np.exp(stopped)
    assert wealth.mean() <= 1 + 4 * wealth.std() / np.sqrt(len(wealth))
    assert high.any(axis=1).mean() <= 0.5


def test_first_crossings_equals_wager_for_each_user() -> None:
    rng = np.random.default_rng(2)
    margins = rng.normal(-0.2, 0.6, (40, 120))
    ends = rng.integers(20, 120, 40)
    padded = margins.copy()
    for row, end in zip(padded, ends, strict=True):
        row[end:] = np.nan
    first = first_crossings(padded, BOUND, ALPHA)
    alone = [trust.wager([], row[:end].tolist(), BOUND, ALPHA)[2] for row, end in zip(margins, ends, strict=True)]
    assert [None if at < 0 else at for at in first.tolist()] == alone
    assert {None, *alone} != {None}


@pytest.mark.parametrize(("strength", "half", "most_users"), [(0.5, 110, None), (1.0, 40, 200), (2.0, 18, 45)])
def test_another_users_knowledge_is_found_in_stated_time(strength: float, half: int, most_users: int | None) -> None:
    """Half of the users within 110, 40 and 18 events; 90% within 200 and 45 (at strength ½ too few are harmed).

    The limits are about 20% above the figures in docs/judge.md.
    """
    first = first_crossings(planted(1000, 400, strength, np.random.default_rng(3)), BOUND, ALPHA)
    found = within(first, 0.5)
    assert found is not None
    assert found <= half
    if most_users is not None:
        ninety = within(first, 0.9)
        assert ninety is not None
        assert ninety <= most_users


def test_correct_knowledge_is_rarely_contradicted() -> None:
    margins = planted(2000, 400, 0.5, np.random.default_rng(4), wrong=False)
    assert (first_crossings(margins, BOUND, ALPHA) >= 0).mean() < 0.01


def live(margins: Margins) -> tuple[list[float], int]:
    """Return a user's trust after each event and the contradictions; each one brings new knowledge at once."""
    harm: list[float] = []
    gain: list[float] = []
    standing, trusts, contradictions = 1.0, [], 0
    for margin in margins.tolist():
        verdict = judge(harm, gain, standing, [margin], BOUND, ALPHA)
        harm, gain, standing = verdict.harm, verdict.help, verdict.standing
        trusts.append(verdict.trust)
        if verdict.contradicted is not None:
            contradictions += 1
            harm = []
    return trusts, contradictions


def test_trust_falls_with_harm_and_recovers_with_help() -> None:
    rng = np.random.default_rng(6)
    wrong, right = planted(12, 100, 2.0, rng), planted(12, 250, 0.5, rng, wrong=False)
    lost, recovered = [], []
    for row in np.hstack([wrong, right]):
        trusts, contradictions = live(row)
        assert contradictions >= 1
        lost.append(np.mean(trusts[60:100]))
        recovered.append(np.mean(trusts[-50:]))
    assert np.mean(lost) < 0.2, "users with repeated contradictions start at the minimum standing"
    assert np.median(recovered) == 1.0
    assert np.mean(recovered) > 0.85


def test_useless_knowledge_rarely_regains_trust() -> None:
    """P(a share x of the lost trust is ever regained) ≤ α^x, checked at x = ½."""
    margins = gaussian(2000, 200, np.random.default_rng(9))
    path = trust.mixture(np.cumsum(
        trust.bets(margins.ravel(), BOUND, side=HELP).reshape(2000, 200, -1), axis=1)).max(axis=1)
    start = trust.MIN_STANDING
    regained = np.array([trust.trust_level(0.0, wealth, start, ALPHA) for wealth in path])
    assert (regained >= start + 0.5 * (1 - start)).sum() <= binomial_bound(2000, ALPHA**0.5)


def test_verdicts_do_not_depend_on_batch_sizes() -> None:
    margins = np.random.default_rng(8).normal(0.1, 0.5, 60).tolist()
    together = judge([], [], 0.25, margins, BOUND, ALPHA)
    part = judge([], [], 0.25, margins[:17], BOUND, ALPHA)
    assert judge(part.harm, part.help, part.standing, margins[17:], BOUND, ALPHA) == together
    bad = judge([], [], 1.0, [-1.0] * 30, BOUND, ALPHA)
    assert (bad.contradicted, bad.trust, bad.standing, bad.help) == (9, 0.0, 0.5, [])
    assert bad.harm == judge([], [], 1.0, [-1.0] * 10, BOUND, ALPHA).harm, "later margins are ignored"


def test_a_pool_finds_a_harmful_version_before_its_users_tests() -> None:
    """Mean margin −0.045 B (strength ¼): found within 3 events per user, before any user's own test."""
    rng = np.random.default_rng(10)
    harmed, served = planted(500, 300, 0.25, rng), planted(500, 300, 0.25, rng, wrong=False)
    bad, good = Pool(), Pool()
    assert bad.bet(arrivals(harmed, rng).tolist(), BOUND, ALPHA / 2)
    assert not good.bet(arrivals(served, rng).tolist(), BOUND, ALPHA / 2)
    assert bad.harmful_at <= 3 * len(harmed)
    first = first_crossings(harmed, BOUND, ALPHA)
    assert ((first >= 0) & (first < 3)).sum() == 0
    own = within(first, 0.5)
    assert own is None or own > 100


def test_a_harmful_codeword_is_named_and_no_other() -> None:
    run = codeword(640, 60, 1.0, ALPHA, np.random.default_rng(12))
    assert run["named"] == ["0:5"]
    assert run["own_margins"] < 300


@pytest.mark.slow
@pytest.mark.parametrize("null", ["Gaussian", "infinite mean before clipping", "stake chosen from the past"])
def test_pools_of_harmless_versions_keep_their_level_through_restarts(null: str) -> None:
    rows = NULLS[null](300, 50_000, np.random.default_rng(13))
    found = 0
    for row in rows:
        pool = Pool()
        found += pool.bet(row.tolist(), BOUND, ALPHA)
    assert found <= binomial_bound(300, ALPHA)
