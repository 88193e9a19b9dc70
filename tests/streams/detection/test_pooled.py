"""Pools find harmful versions and codewords, count each event once, and do not depend on batch sizes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import FreshetError
from streams.detection import pooled
from streams.detection.pooled import Finding, MarginBatch, Pool, Pools, culprit, dumps, fold, loads

ALPHA, CELLS = 0.05, 8


def evidence(user: str, margins: list[float], codes: tuple[int, ...] = (0, 1), version: str = "m1", first: int = 1
             ) -> MarginBatch:
    return MarginBatch(user, version, codes, range(first, first + len(margins)), margins)


MARGINS = st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=6), min_size=1, max_size=8)


@given(MARGINS, st.integers(0, 8))
def test_batch_sizes_do_not_matter_and_redelivery_changes_nothing(users: list[list[float]], cut: int) -> None:
    everything = [evidence(f"u{n}", margins, (n % 3, n % 2)) for n, margins in enumerate(users)]
    together, apart = Pools(), Pools()
    findings = fold(together, everything, 1.0, ALPHA, CELLS)
    in_parts = fold(apart, everything[:cut], 1.0, ALPHA, CELLS) + fold(apart, everything[cut:], 1.0, ALPHA, CELLS)
    assert {(f.version, f.code, f.margins) for f in findings} == {(f.version, f.code, f.margins) for f in in_parts}
    overall, parts = (pools.versions["m1"].overall for pools in (together, apart))
    assert overall.harmful_at or (overall.n, overall.wealth, parts.harmful_at) == (parts.n, parts.wealth, 0)
    before = dumps(together)
    assert fold(together, everything, 1.0, ALPHA, CELLS) == []
    assert loads(dumps(together)).versions == loads(before).versions


def test_a_harmful_version_is_found_once_and_another_is_not() -> None:
    pools, findings = Pools(), []
    for user in range(40):
        both = [evidence(f"a{user}", [-0.8]), evidence(f"b{user}", [0.2], version="m2")]
        findings += fold(pools, both, 1.0, ALPHA, CELLS)
    assert [f.version for f in findings if not f.code] == ["m1"]
    assert findings[0].margins < 20, "one margin per user, pooled over users"
    assert pools.versions["m2"].overall.harmful_at == 0
    assert pools.versions["m1"].overall.mean == pytest.approx(-0.8)


def test_one_harmful_codeword_is_named_and_the_version_stays() -> None:
    pools, findings = Pools(), []
    for user in range(300):
        bad = user % 10 == 0
        findings += fold(pools, [evidence(f"u{user}", [-0.9 if bad else 0.3], (5 if bad else user % 4, 1))], 1.0, ALPHA,
                      CELLS)
    assert findings == [Finding("m1", "0:5", findings[0].margins, findings[0].mean)]
    assert findings[0].mean == pytest.approx(-0.9)
    assert 10 < findings[0].margins < 30
    assert culprit(pools.versions["m1"]) == "0:5"
    assert culprit(pooled.VersionPools()) == ""


def test_late_harm_is_found_within_one_and_a_half_epochs() -> None:
    rng = np.random.default_rng(3)
    pool = Pool()
    assert not pool.bet((0.1 + rng.normal(0, 0.3, 5 * pooled.EPOCH)).tolist(), 1.0, ALPHA)
    assert pool.restarts >= 3
    for _ in range(3 * pooled.EPOCH // 2 // 100):
        if pool.bet((-0.1 + rng.normal(0, 0.3, 100)).tolist(), 1.0, ALPHA):
            break
    assert 0 < pool.harmful_at - 5 * pooled.EPOCH < 3 * pooled.EPOCH // 2


def test_pools_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "MAX_USERS", 3)
    monkeypatch.setattr(pooled, "MAX_VERSIONS", 2)
    pools = Pools()
    for n in range(6):
        fold(pools, [evidence(f"u{n}", [0.1], version=f"m{n}")], 1.0, ALPHA, CELLS)
    assert list(pools.judged) == ["u3", "u4", "u5"]
    assert list(pools.versions) == ["m4", "m5"]


def test_evidence_is_read_back_or_rejected() -> None:
    pools = Pools()
    fold(pools, [evidence("u", [0.1, -0.2])], 1.0, ALPHA, CELLS)
    assert loads(dumps(pools)) == pools
    with pytest.raises(FreshetError, match="not the guard's"):
        loads(b"nonsense")
    newer = copy.deepcopy(pools)
    newer.layout = pooled.LAYOUT + 1
    with pytest.raises(FreshetError, match="newer"):
        loads(dumps(newer))
