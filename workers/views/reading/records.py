"""What the views keep of each message: the fields that are shown, read by name and checked.

msgspec and not the pydantic models of `schemas/messages`: 3 µs a recommendation instead of 25, and every record of
these topics passes here. Fields of newer releases are ignored.
"""

from __future__ import annotations

from math import exp, log

import msgspec


class KeptItem(msgspec.Struct, frozen=True):
    """An item of a list."""

    item_id: str
    score: float


class KeptList(msgspec.Struct):
    """Of `recommendations`; `read_at` is the broker's time, seconds."""

    items: list[KeptItem]
    reference: list[str]
    source: str
    reason: str
    kl: float
    epsilon: float
    knowledge_version: int
    model_version: str
    event_time: float
    count: int
    caused_at: float
    ranked_at: float
    fallback: str | None = None
    lagrange: float | None = None
    knowledge_age_s: float | None = None
    knowledge_behind: int | None = None
    written: dict[str, str] = msgspec.field(default_factory=dict)
    experiment: str = ""
    arm: str = ""
    read_at: float = 0.0
    since_count: int = -1  # events included when a list that shows the same was first made; -1 = not stored yet

    @property
    def shows(self) -> list[str]:
        """The ids of the items, best first."""
        return [one.item_id for one in self.items]

    @property
    def changed(self) -> bool:
        """Whether it differs from what behaviour alone would have shown."""
        return self.shows != self.reference[:len(self.items)]


class KeptRequest(msgspec.Struct):
    """Of `knowledge-requests`."""

    version: int
    reason: str
    count: int
    event_time: float
    caused_at: float
    requested_at: float
    priority: float = 0.0


class KeptUpdate(msgspec.Struct):
    """Of `knowledge-updates`."""

    version: int
    reason: str
    model_version: str
    count: int
    event_time: float
    caused_at: float
    generated_at: float
    written: bool = True
    spent_s: float | None = None
    spent_tokens: float | None = None


class KeptMargin(msgspec.Struct, frozen=True):
    """Of a judgement."""

    event_id: str
    item_id: str
    count: int
    value: float
    knowledge_version: int


class KeptJudgement(msgspec.Struct):
    """Of `judgements`."""

    margins: list[KeptMargin]
    judged_at: float


class KeptRefresh(msgspec.Struct):
    """A version: what asked for it, what made it."""

    asked: KeptRequest | None = None
    made: KeptUpdate | None = None


class Head(msgspec.Struct, array_like=True):
    """The first fields of a user's state (`streams.profile.state`), stored by position; what is `Raw` is skipped."""

    layout: int
    items: list[str]
    times: list[float]
    types: msgspec.Raw
    counts: list[int]
    seen: msgspec.Raw
    event_ids: msgspec.Raw
    count: int
    offset: msgspec.Raw
    duplicates: msgspec.Raw
    late: msgspec.Raw
    too_late: msgspec.Raw
    unknown_items: msgspec.Raw
    short: msgspec.Raw
    long: msgspec.Raw
    anchor: msgspec.Raw
    cusum: float
    drifted: msgspec.Raw
    drift_n: msgspec.Raw
    drift_mean: msgspec.Raw
    drift_m2: msgspec.Raw
    log_wealth: list[float]
    trust: float


class Step(msgspec.Struct, array_like=True, frozen=True):
    """A user's statistics after an event; see `facts.StateStep`."""

    count: int
    drift: float
    log_wealth: float
    trust: float


def step_of(head: Head) -> Step:
    """Return a state's statistics; the bet's log-wealth is that of the mixture (`streams.detection.trust`)."""
    wealth = head.log_wealth
    top = max(wealth, default=0.0)
    mixed = top + log(sum(exp(one - top) for one in wealth) / len(wealth)) if wealth else 0.0
    return Step(head.count, head.cusum, mixed, head.trust)


LIST = msgspec.json.Decoder(KeptList)
ASKED = msgspec.json.Decoder(KeptRequest)
MADE = msgspec.json.Decoder(KeptUpdate)
JUDGED = msgspec.json.Decoder(KeptJudgement)
HEAD = msgspec.msgpack.Decoder(Head)
