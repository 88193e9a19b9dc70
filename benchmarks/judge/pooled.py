"""Pooled tests over all users: how much sooner they find a harmful version or codeword than single users' tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.judge.margins import BOUND, NULLS, Margins, planted
from benchmarks.judge.tests import within
from streams.detection.pooled import MarginBatch, Pool, Pools, fold
from streams.detection.trust import first_crossings

CODES = 64


def arrivals(margins: Margins, rng: np.random.Generator) -> Margins:
    """Return the margins of users (U, T) in an order of arrival: rounds with one event per user, each shuffled."""
    return np.concatenate([column[rng.permutation(len(column))] for column in margins.T])


def race(users: int, events: int, strength: float, alpha: float, rng: np.random.Generator) -> dict[str, Any]:
    """Compare the pool of a harmful version, given to half of the users, with these users' own tests.

    Returns:
        the margins the pool needed, the same per user, the share of these users found by their own tests by then, and
        the number of events after which half of them are found.
    """
    harmed = planted(users // 2, events, strength, rng)
    first = first_crossings(harmed, BOUND, alpha)
    pool = Pool()
    pool.bet(arrivals(harmed, rng).tolist(), BOUND, alpha / 2)
    each = pool.harmful_at / len(harmed)
    return {
        "margins": pool.harmful_at, "events_per_user": round(each, 3),
        "mean": round(float(np.clip(harmed, -BOUND, BOUND).mean()), 4),
        "users_found_by_then": round(float(((first >= 0) & (first < each)).mean()), 4),
        "user_median": within(first, 0.5)}


def mixed(users: int, events: int, strength: float, alpha: float, rng: np.random.Generator) -> dict[str, Any]:
    """Test a version that harms half of its users and helps the others; it should be found if harm prevails."""
    both = np.vstack([planted(users // 2, events, strength, rng),
                      planted(users // 2, events, strength, rng, wrong=False)])
    pool = Pool()
    pool.bet(arrivals(both, rng).tolist(), BOUND, alpha / 2)
    return {"margins": pool.harmful_at, "mean": round(float(np.clip(both, -BOUND, BOUND).mean()), 4)}


def codeword(users: int, events: int, strength: float, alpha: float, rng: np.random.Generator) -> dict[str, Any]:
    """Test a version in which one of 64 codewords does harm.

    Returns:
        the codewords named, the margins of the codeword and of all users at that time, and its share of users.
    """
    codes = rng.integers(0, CODES, users)
    codes[:max(2, users // CODES)] = 5
    bad = codes == 5
    margins = np.empty((users, events))
    margins[bad] = planted(int(bad.sum()), events, strength, rng)
    margins[~bad] = planted(int((~bad).sum()), events, 0.5, rng, wrong=False)
    pools, findings, seen = Pools(), [], 0
    for step in range(events):
        order = rng.permutation(users)
        findings += fold(pools, [MarginBatch(f"u{u}", "m", (int(codes[u]),), (step + 1,), (margins[u, step],))
                                 for u in order], BOUND, alpha, CODES)
        seen += users
        if findings:
            break
    return {"named": [f.code for f in findings], "own_margins": findings[0].margins if findings else 0,
            "margins": seen, "share_of_users": round(float(bad.mean()), 4)}


def false_alarms(populations: int, margins: int, alpha: float, rng: np.random.Generator) -> dict[str, float]:
    """Return the share of harmless populations in which the pool finds harm, by null."""
    out = {}
    for name, null in NULLS.items():
        users = 100 if name == "behaviour of neither model" else 1
        rows = null(populations * users, margins // users, rng).reshape(populations, users, -1)
        hits = 0
        for population in rows:
            pool = Pool()
            pool.bet(population.T.ravel().tolist(), BOUND, alpha / 2)
            hits += pool.harmful_at > 0
        out[name] = round(hits / populations, 4)
    return out
