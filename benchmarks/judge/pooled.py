"""Everybody's margins in one bet: how much sooner a harmful version or codeword is found than by single users."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.judge.margins import BOUND, NULLS, Margins, planted
from benchmarks.judge.tests import within
from streams.detection.pooled import MarginBatch, Pool, Pools, fold
from streams.detection.trust import first_crossings

CODES = 64


def arrivals(margins: Margins, rng: np.random.Generator) -> Margins:
    """Return the margins of users (U, T) in an order of arrival: in each round everyone has one event, shuffled."""
    return np.concatenate([column[rng.permutation(len(column))] for column in margins.T])


def race(users: int, events: int, strength: float, alpha: float, rng: np.random.Generator) -> dict[str, Any]:
    """A harmful version is given to half of the users: the pool of that version against its users' own tests.

    Returns:
        margins the pool needed, the same per user, the share of those users found by their own tests by then, and
        within how many events half of them are.
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
    """One version misleads half of its users and serves the other half: found where it does more harm than good."""
    both = np.vstack([planted(users // 2, events, strength, rng),
                      planted(users // 2, events, strength, rng, wrong=False)])
    pool = Pool()
    pool.bet(arrivals(both, rng).tolist(), BOUND, alpha / 2)
    return {"margins": pool.harmful_at, "mean": round(float(np.clip(both, -BOUND, BOUND).mean()), 4)}


def codeword(users: int, events: int, strength: float, alpha: float, rng: np.random.Generator) -> dict[str, Any]:
    """One of 64 codewords misleads its users: which is named, after how many margins of all users and of its own."""
    codes = rng.integers(0, CODES, users)
    codes[:max(2, users // CODES)] = 5
    bad = codes == 5
    margins = np.empty((users, events))
    margins[bad] = planted(int(bad.sum()), events, strength, rng)
    margins[~bad] = planted(int((~bad).sum()), events, 0.5, rng, wrong=False)
    pools, found, seen = Pools(), [], 0
    for step in range(events):
        order = rng.permutation(users)
        found += fold(pools, [MarginBatch(f"u{u}", "m", (int(codes[u]),), (step + 1,), (margins[u, step],))
                              for u in order], BOUND, alpha, CODES)
        seen += users
        if found:
            break
    return {"named": [f.code for f in found], "own_margins": found[0].margins if found else 0, "margins": seen,
            "share_of_users": round(float(bad.mean()), 4)}


def false_alarms(populations: int, margins: int, alpha: float, rng: np.random.Generator) -> dict[str, float]:
    """Return the share of harmless populations found by the pool of a version, by null."""
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
