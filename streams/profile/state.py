"""The state kept per user: bounded, a few kB, the same bytes in RocksDB and in the changelog topic."""

from __future__ import annotations

from math import isfinite
from typing import Annotated

import msgspec

from schemas.codec import packed_layout
from schemas.errors import FreshetError, NewerFormatError
from schemas.messages import RefreshReason

LAYOUT = 1
# Bounds of what is read, far beyond what is ever written: a number outside is damage, on which arithmetic would fail.
Number = Annotated[int, msgspec.Meta(ge=-1, le=2**52)]
Real = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]


class Trial(msgspec.Struct, array_like=True):
    """A refresh whose outcome is being measured; see `gain`."""

    features: list[float]  # features the refresh was decided on
    before: float  # mean margin with the old knowledge, in units of the judge's bound B
    total: float = 0.0  # sum of margins with the new knowledge, in B
    events: Number = 0  # number of those margins


class Pending(msgspec.Struct, array_like=True):
    """A knowledge request without an update so far."""

    version: Number
    reason: RefreshReason
    anchor: bytes  # long interest at the time of the request, (d,) float32
    count: Number
    event_id: str
    event_time: float
    caused_at: float
    requested_at: float
    priority: float
    features: list[float] = msgspec.field(default_factory=list)  # that its expected gain is based on; [] = no estimate


class UserState(msgspec.Struct, array_like=True):
    """One user's state. Vectors are (d,) float32 as bytes; b"" = none yet.

    The history columns `items`, `times`, `types`, `counts` are aligned and ordered by event time, oldest first.
    Fields are stored by position: new ones go to the end, with a default.
    """

    layout: Number = LAYOUT
    items: list[str] = msgspec.field(default_factory=list)
    times: list[float] = msgspec.field(default_factory=list)
    types: list[str] = msgspec.field(default_factory=list)
    counts: list[Number] = msgspec.field(default_factory=list)  # number of the event in order of arrival
    # Items that left the history, oldest first, with their event time where `ranking.repeat` needs it.
    seen: dict[str, float | None] = msgspec.field(default_factory=dict)
    event_ids: dict[str, Number] = msgspec.field(default_factory=dict)  # recent event id → its count, oldest first
    count: Number = 0  # events applied
    offset: Number = -1  # source offset of the newest applied event
    duplicates: Number = 0
    late: Number = 0  # inserted into the history before newer events
    too_late: Number = 0  # older than a full history, not applied
    unknown_items: Number = 0

    short: bytes = b""
    long: bytes = b""
    anchor: bytes = b""  # long interest when the current knowledge was requested

    cusum: Real = 0.0
    drifted: bool = False  # the CUSUM has crossed its threshold since the last knowledge
    drift_n: Number = 0  # statistics of the user's own d: number, mean, sum of squared deviations (Welford)
    drift_mean: Real = 0.0
    drift_m2: Real = 0.0

    log_wealth: list[float] = msgspec.field(default_factory=list)  # one per κ of trust.KAPPAS; [] = all 0
    trust: float = 1.0
    judged_count: Number = 0  # the tests include margins up to this count
    contradicted_at: Number = 0  # count of the event that crossed 1/α; 0 = not contradicted

    knowledge_version: Number = 0
    knowledge_count: Number = 0
    knowledge_event_time: float = 0.0
    model_version: str = ""
    pending: Pending | None = None
    last_refresh_count: Number = 0

    event_id: str = ""  # of the newest applied event
    caused_at: float = 0.0  # broker timestamp of its record, seconds

    help_wealth: list[float] = msgspec.field(default_factory=list)  # log-wealth of the bet on help; [] = all 0
    standing: float = 1.0  # trust that new knowledge starts with

    margins: list[float] = msgspec.field(default_factory=list)  # the newest with the current knowledge, in B
    trial: Trial | None = None
    wanted_count: Number = 0  # count at which a due refresh was first refused for its price; 0 = none refused
    interest_model: str = ""  # model version of the interests' item vectors; "" = not known
    source_life: int = 0  # of the source log that `offset` counts in; 0 = not known
    outdated_at: float = 0.0  # wall clock when knowledge of a model not in use came; 0 = it was the one in use

    # Item → time of the newest event that took it (that was against it), oldest entry first.
    taken: dict[str, Real] = msgspec.field(default_factory=dict)
    against: dict[str, Real] = msgspec.field(default_factory=dict)
    apart: Number = 0  # events that are no evidence: against, neutral, or taken back before they came
    apart_until: Real = -1.0  # event time of the newest of them

    allow: list[str] = msgspec.field(default_factory=list)  # labels that lists keep to, see `UserSeen`
    deny: list[str] = msgspec.field(default_factory=list)

    @property
    def event_time(self) -> float:
        """Event time of the newest event, 0 for an empty history."""
        return self.times[-1] if self.times else 0.0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UserState)


def dumps(state: UserState) -> bytes:
    """Return the state as MessagePack bytes; equal states give equal bytes."""
    return _encoder.encode(state)


def loads(data: bytes) -> UserState:
    """Return the state in `data`.

    Raises:
        NewerFormatError: a newer release wrote them.
        FreshetError: the bytes are not a state.
    """
    try:
        state = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if (found := packed_layout(data)) > LAYOUT:
            raise NewerFormatError("a stored user state", found, LAYOUT) from error
        raise FreshetError(f"a stored user state cannot be read ({error}); remove the state folder to rebuild it "
                           "from the changelog topic") from error
    if fault := _fault(state):
        raise FreshetError(f"a stored user state is damaged ({fault}); remove the state folder to rebuild it from the "
                           "changelog topic")
    if state.layout > LAYOUT:
        raise NewerFormatError("a stored user state", state.layout, LAYOUT)
    return state


def _fault(state: UserState) -> str:
    """Return what is wrong with a decoded state, "" for a sound one: what a step would raise on. Takes 1 µs."""
    width = len(state.long)
    if not len(state.items) == len(state.times) == len(state.types) == len(state.counts):
        return "the columns of its history differ in length"
    if width % 4 or len(state.short) != width or len(state.anchor) not in (0, width):
        return "its vectors differ in length"
    if state.pending is not None and len(state.pending.anchor) not in (0, width):
        return "its vectors differ in length"
    if not isfinite(state.drift_mean + state.drift_m2 + state.cusum) or state.drift_m2 < 0.0 or state.drift_n < 0:
        return "its drift statistic is none"
    if not (0.0 <= state.trust <= 1.0 and 0.0 <= state.standing <= 1.0):
        return "its trust is not between 0 and 1"
    return ""
