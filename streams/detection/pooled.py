"""Test over all users' margins whether a model version, or one of its codewords, is harmful.

A contradiction of one user's knowledge takes at least 8 events. A version is tested on the margins of all users in
order of arrival. Pooling is valid: the wealth is a supermartingale if E[m_t | everything before] ≥ 0 for each margin,
whether or not users differ or margins depend on each other. Two conditions must hold: each event counts once
(redelivered events are dropped by their count), and which margin arrives next does not depend on its value. The null
hypothesis is about the average over users. A version that harms some users as much as it helps others is left to the
per-user test.

Levels. A harmless version, codewords included, is ever flagged with probability ≤ α. Half of α goes to the version
itself, the other half in equal parts to its `cells` codewords (Bonferroni; with 320 codewords, one needs
log 320 = 5.8 nats more than the version). Each version has its own α.

Restarts. On a harmless version a bet on harm loses wealth over time, and later harm would take as long again to show.
So after `EPOCH` margins a losing bet ends and a new one begins, the j-th at level α/(j (j + 1)); these levels sum to α.
Harm that needs more margins than that, a mean less than about 0.03 standard deviations below 0, may never be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from schemas.codec import packed_layout
from schemas.errors import FreshetError, NewerFormatError
from streams.detection.trust import mixture, wager

# Down to 1/64, smaller than for a single user: thousands of margins can show a mean of −0.01 (best κ: −mean/variance).
# The three extra κ cost log 2 = 0.7 nats.
POOLED_KAPPAS: tuple[float, ...] = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
EPOCH = 20_000
LAYOUT = 1
MAX_USERS, MAX_VERSIONS = 200_000, 8  # about 20 MB of users; the least recently judged are dropped first


class Pool(msgspec.Struct, array_like=True):
    """One bet. `total` is the sum of margins clipped to [−B, B] and divided by B."""

    wealth: list[float] = msgspec.field(default_factory=list)  # log-wealth per κ; [] = no bet so far
    n: int = 0
    total: float = 0.0
    since: int = 0  # n when the current bet began
    restarts: int = 0
    harmful_at: int = 0  # n at which harm was found; 0 = not found

    @property
    def mean(self) -> float:
        """Mean of the clipped margins, in units of B."""
        return self.total / self.n if self.n else 0.0

    @property
    def log_wealth(self) -> float:
        """log W of the current bet."""
        return float(mixture(np.array(self.wealth))) if self.wealth else 0.0

    def bet(self, margins: Sequence[float], bound: float, alpha: float) -> bool:
        """Bet on margins (nats) in order of arrival; return True when harm is first found at level `alpha`."""
        crossed = None
        for start in range(0, len(margins), EPOCH):
            crossed = self._bet(margins[start:start + EPOCH], bound, alpha)
            if crossed:
                break
        return bool(crossed)

    def _bet(self, margins: Sequence[float], bound: float, alpha: float) -> bool:
        if self.harmful_at:
            return False
        if self.n - self.since >= EPOCH and self.log_wealth < 0:
            self.wealth, self.since, self.restarts = [], self.n, self.restarts + 1
        level = alpha / ((self.restarts + 1) * (self.restarts + 2))
        self.wealth, _, crossed = wager(self.wealth, margins, bound, level, POOLED_KAPPAS)
        if crossed is not None:
            self.harmful_at = self.n + crossed + 1
        self.n += len(margins)
        self.total += float(np.clip(margins, -bound, bound).sum()) / bound
        return crossed is not None


class VersionPools(msgspec.Struct, array_like=True):
    """A model version and its codewords, named "instruction:codeword"."""

    overall: Pool = msgspec.field(default_factory=Pool)
    codes: dict[str, Pool] = msgspec.field(default_factory=dict)


class Pools(msgspec.Struct, array_like=True):
    """The evidence of all versions. Fields are stored by position: new ones go to the end, with a default."""

    layout: int = LAYOUT
    versions: dict[str, VersionPools] = msgspec.field(default_factory=dict)  # most recently judged last
    judged: dict[str, int] = msgspec.field(default_factory=dict)  # user → newest judged count; most recent user last


@dataclass(frozen=True, slots=True)
class MarginBatch:
    """A user's margins.

    Args:
        version: version of the model or adapter that made the knowledge.
        codes: codeword of each instruction; () = not known.
        counts: counts of the events, increasing; counts judged before are skipped.
        margins: nats, one per count.
    """

    user: str
    version: str
    codes: Sequence[int]
    counts: Sequence[int]
    margins: Sequence[float]


@dataclass(frozen=True, slots=True)
class Finding:
    """A version (`code` = "") or one of its codewords is harmful.

    Args:
        margins: number of margins until the finding.
        mean: mean of all its clipped margins, in units of B.
    """

    version: str
    code: str
    margins: int
    mean: float


@dataclass(slots=True)
class _Gathered:
    overall: list[float] = field(default_factory=list)
    codes: dict[str, list[float]] = field(default_factory=dict)


def fold(pools: Pools, evidence: Sequence[MarginBatch], bound: float, alpha: float, cells: int) -> list[Finding]:
    """Bet on the margins of many users, in order of arrival. Changes `pools` in place.

    Args:
        bound: B, nats.
        alpha: level per version, codewords included.
        cells: codewords of a version: instructions × codewords per codebook.

    Returns:
        New findings, versions before their codewords. Each is reported once.
    """
    gathered: dict[str, _Gathered] = {}
    for batch in evidence:
        _gather(pools, batch, gathered)
    findings = []
    for version, new in gathered.items():
        version_pools = pools.versions.pop(version, None) or VersionPools()
        pools.versions[version] = version_pools
        overall = version_pools.overall
        if overall.bet(new.overall, bound, alpha / 2):
            findings.append(Finding(version, "", overall.harmful_at, overall.mean))
        for code, margins in new.codes.items():
            pool = version_pools.codes.setdefault(code, Pool())
            if pool.bet(margins, bound, alpha / 2 / cells):
                findings.append(Finding(version, code, pool.harmful_at, pool.mean))
    _drop_oldest(pools.judged, MAX_USERS)
    _drop_oldest(pools.versions, MAX_VERSIONS)
    return findings


def _gather(pools: Pools, batch: MarginBatch, into: dict[str, _Gathered]) -> None:
    done = pools.judged.pop(batch.user, 0)
    fresh = []
    for count, margin in zip(batch.counts, batch.margins, strict=True):
        if count > done:
            fresh.append(margin)
            done = count
    pools.judged[batch.user] = done
    if fresh and batch.version:
        gathered = into.setdefault(batch.version, _Gathered())
        gathered.overall += fresh
        for instruction, code in enumerate(batch.codes):
            gathered.codes.setdefault(f"{instruction}:{code}", []).extend(fresh)


def _drop_oldest(entries: dict[str, int] | dict[str, VersionPools], keep: int) -> None:
    for name in list(entries)[:max(0, len(entries) - keep)]:
        del entries[name]


def culprit(pools: VersionPools) -> str:
    """Return the one codeword that, if left out, brings the version's mean margin to at least 0; "" if there is none.

    This describes the margins seen so far. It is not a test.
    """
    overall, worst = pools.overall, min(pools.codes, key=lambda code: pools.codes[code].total, default="")
    if not worst or pools.codes[worst].n >= overall.n:
        return ""
    return worst if overall.total - pools.codes[worst].total >= 0 else ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Pools)


def dumps(pools: Pools) -> bytes:
    """Return the pools as MessagePack bytes."""
    return _encoder.encode(pools)


def loads(data: bytes) -> Pools:
    """Return the pools in `data`.

    Raises:
        NewerFormatError: a newer release wrote them.
        FreshetError: the bytes are not pools.
    """
    try:
        pools = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if (found := packed_layout(data)) > LAYOUT:
            raise NewerFormatError("the guard's evidence", found, LAYOUT) from error
        raise FreshetError(f"not the guard's evidence ({error})") from error
    if pools.layout > LAYOUT:
        raise NewerFormatError("the guard's evidence", pools.layout, LAYOUT)
    return pools
