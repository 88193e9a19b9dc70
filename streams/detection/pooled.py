"""The judge over many users: is a model version harmful, or one of its codewords?

One user needs at least 8 events for a contradiction; a version is judged by everybody's margins in their order of
arrival. Pooling is fine: the wealth is a supermartingale as long as E[m_t | everything before] ≥ 0 for each margin, and
that says nothing about whose margin it is, or that they are independent. What it does need: each event is counted once
(redelivered ones are dropped by their count), and what arrives next does not depend on how it turns out. The null is
harm on average over whoever comes: a version that harms some as much as it helps others is none of its business, that
is the per-user test's.

Levels. A harmless version is ever found guilty with probability ≤ α, its codewords included: half of α goes to the
version as a whole, the other half in equal parts to its `cells` codewords (Bonferroni; 320 of them cost a codeword
log 320 = 5.8 nats more than the version). Different versions are different questions: α each.

Restarts. After long good service a bet on harm has lost so much that harm which begins then would take as long again
to show. So a bet that is down after `EPOCH` margins ends and another begins, the j-th of them at level α/(j (j + 1));
these add up to α. What needs more margins than that, a mean less than about 0.03 standard deviations below 0, may never
be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from schemas.errors import FreshetError
from streams.detection.trust import mixture, wager

# Down to 1/64, unlike a single user's: thousands of margins are there to show a mean of −0.01 (best κ: −mean/variance),
# and three more κ cost log 2 = 0.7 nats.
POOLED_KAPPAS: tuple[float, ...] = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
EPOCH = 20_000
LAYOUT = 1
USERS, VERSIONS = 200_000, 8  # remembered at most, the least recently judged are forgotten: some 20 MB of users


class Pool(msgspec.Struct, array_like=True):
    """One bet. `total` is the sum of margins clipped to [−B, B] and divided by B."""

    wealth: list[float] = msgspec.field(default_factory=list)  # log, per κ; [] = nothing bet
    n: int = 0
    total: float = 0.0
    since: int = 0  # n when the current bet began
    restarts: int = 0
    found_at: int = 0  # n at which it was found harmful; 0 = not

    @property
    def mean(self) -> float:
        """Mean of the clipped margins, in units of B."""
        return self.total / self.n if self.n else 0.0

    @property
    def log_wealth(self) -> float:
        """log W of the current bet."""
        return float(mixture(np.array(self.wealth))) if self.wealth else 0.0

    def bet(self, margins: Sequence[float], bound: float, alpha: float) -> bool:
        """Bet on margins (nats) in order of arrival; return whether this finds harm at level `alpha`, once."""
        crossed = None
        for start in range(0, len(margins), EPOCH):
            crossed = self._bet(margins[start:start + EPOCH], bound, alpha)
            if crossed:
                break
        return bool(crossed)

    def _bet(self, margins: Sequence[float], bound: float, alpha: float) -> bool:
        if self.found_at:
            return False
        if self.n - self.since >= EPOCH and self.log_wealth < 0:
            self.wealth, self.since, self.restarts = [], self.n, self.restarts + 1
        level = alpha / ((self.restarts + 1) * (self.restarts + 2))
        self.wealth, _, crossed = wager(self.wealth, margins, bound, level, POOLED_KAPPAS)
        if crossed is not None:
            self.found_at = self.n + crossed + 1
        self.n += len(margins)
        self.total += float(np.clip(margins, -bound, bound).sum()) / bound
        return crossed is not None


class VersionPools(msgspec.Struct, array_like=True):
    """A model version and its codewords, named "instruction:codeword"."""

    whole: Pool = msgspec.field(default_factory=Pool)
    codes: dict[str, Pool] = msgspec.field(default_factory=dict)


class Pools(msgspec.Struct, array_like=True):
    """All that is remembered. Fields are stored by position: new ones go to the end, with a default."""

    layout: int = LAYOUT
    versions: dict[str, VersionPools] = msgspec.field(default_factory=dict)  # the most recently judged last
    judged: dict[str, int] = msgspec.field(default_factory=dict)  # user → count of the newest event bet on, likewise


@dataclass(frozen=True, slots=True)
class MarginBatch:
    """A user's margins.

    Args:
        version: of the model or adapter that made the knowledge.
        codes: codeword of each instruction; () = not known.
        counts: of the events, rising; what was counted already is passed over.
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
        margins: how many it took.
        mean: of all of its clipped margins, in units of B.
    """

    version: str
    code: str
    margins: int
    mean: float


@dataclass(slots=True)
class _Gathered:
    whole: list[float] = field(default_factory=list)
    codes: dict[str, list[float]] = field(default_factory=dict)


def fold(pools: Pools, evidence: Sequence[MarginBatch], bound: float, alpha: float, cells: int) -> list[Finding]:
    """Bet on the margins of many users, in order of arrival; `pools` is changed in place.

    Args:
        bound: B, nats.
        alpha: level per version, codewords included.
        cells: how many codewords a version has, instructions × codewords per codebook.

    Returns:
        what is found by these margins, versions before their codewords. Each is found once.
    """
    gathered: dict[str, _Gathered] = {}
    for one in evidence:
        _gather(pools, one, gathered)
    findings = []
    for version, new in gathered.items():
        held = pools.versions.pop(version, None) or VersionPools()
        pools.versions[version] = held
        if held.whole.bet(new.whole, bound, alpha / 2):
            findings.append(Finding(version, "", held.whole.found_at, held.whole.mean))
        for code, margins in new.codes.items():
            pool = held.codes.setdefault(code, Pool())
            if pool.bet(margins, bound, alpha / 2 / cells):
                findings.append(Finding(version, code, pool.found_at, pool.mean))
    _forget(pools.judged, USERS)
    _forget(pools.versions, VERSIONS)
    return findings


def _gather(pools: Pools, one: MarginBatch, into: dict[str, _Gathered]) -> None:
    done = pools.judged.pop(one.user, 0)
    fresh = []
    for count, margin in zip(one.counts, one.margins, strict=True):
        if count > done:
            fresh.append(margin)
            done = count
    pools.judged[one.user] = done
    if fresh and one.version:
        gathered = into.setdefault(one.version, _Gathered())
        gathered.whole += fresh
        for instruction, code in enumerate(one.codes):
            gathered.codes.setdefault(f"{instruction}:{code}", []).extend(fresh)


def _forget(held: dict[str, int] | dict[str, VersionPools], keep: int) -> None:
    for name in list(held)[:max(0, len(held) - keep)]:
        del held[name]


def culprit(pools: VersionPools) -> str:
    """Return the codeword without whose margins the version's mean is not below 0, "" if there is no single one.

    A description of what was seen, not a test.
    """
    whole, worst = pools.whole, min(pools.codes, key=lambda code: pools.codes[code].total, default="")
    if not worst or pools.codes[worst].n >= whole.n:
        return ""
    return worst if whole.total - pools.codes[worst].total >= 0 else ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Pools)


def dumps(pools: Pools) -> bytes:
    """Return the pools as MessagePack bytes."""
    return _encoder.encode(pools)


def loads(data: bytes) -> Pools:
    """Return the pools in `data`.

    Raises:
        FreshetError: the bytes are no pools, or of a newer layout.
    """
    try:
        pools = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise FreshetError(f"not the guard's evidence ({error})") from error
    if pools.layout > LAYOUT:
        raise FreshetError(f"the guard's evidence has layout {pools.layout}, newer than this program's {LAYOUT}")
    return pools
