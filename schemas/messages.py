"""What the roles say to each other and to the outside, one pydantic model per topic.

Times named `*_at` are wall-clock seconds since 1970; `event_time` is the producer's clock. `count` is the number of
events applied to a user's state so far: it orders a user's messages and says how far behind a piece of knowledge is.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.experiment import Arm

RefreshReason = Literal["cold_start", "drift", "contradiction", "stale"]
RankingReason = Literal["event", "knowledge"]
Fallback = Literal["no_knowledge", "store_unavailable", "old_knowledge", "no_trust", "control"]


class Message(BaseModel):
    """Base of every message: frozen, versioned, open to fields of newer versions."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    schema_version: int = Field(default=1, ge=1)


class JudgedEvent(BaseModel):
    """An event to be scored against what was known before it."""

    model_config = ConfigDict(frozen=True)

    event_id: str
    item_id: str
    position: int = Field(ge=0, description="index in the request's history; history[:position] came before it")
    count: int = Field(ge=1, description="the user's event count with this event")


class RankingRequest(Message):
    """streams → ranking: a user's state has changed, recommend again and judge the new events."""

    user_id: str
    reason: RankingReason
    history: list[str] = Field(description="item ids by event time, oldest first, bounded")
    seen: list[str] = Field(default_factory=list, description="distinct items not to recommend, beyond `history`")
    judged: list[JudgedEvent] = Field(default_factory=list)
    count: int
    knowledge_version: int = Field(default=0, description="newest version known to be readable; 0 = none")
    knowledge_model_version: str = ""
    trust: float = Field(default=1.0, ge=0.0, le=1.0, description="share of the full trust radius")
    event_time: float = Field(description="newest event included")
    caused_at: float = Field(description="broker's timestamp of the record that caused this request")
    requested_at: float


class Margin(BaseModel):
    """What knowledge was worth on one event: log p_fused − log p_ref, in nats."""

    model_config = ConfigDict(frozen=True)

    event_id: str
    item_id: str
    count: int
    value: float = Field(allow_inf_nan=False)
    knowledge_version: int


class Judgement(Message):
    """ranking → streams: the margins of a user's newest events, oldest first."""

    user_id: str
    margins: list[Margin]
    model_version: str
    knowledge_model_version: str = Field(default="", description="of the model or adapter that made the knowledge")
    codes: list[int] = Field(default_factory=list, description="codeword of each soft instruction; [] = not known")
    event_time: float
    judged_at: float


class KnowledgeRequest(Message):
    """streams → knowledge: generate this user's knowledge anew. The newest per user wins."""

    user_id: str
    version: int = Field(ge=1, description="the version the new knowledge will carry, rising per user")
    reason: RefreshReason
    history: list[str]
    count: int
    event_id: str = Field(description="the event that caused the refresh")
    event_time: float
    caused_at: float = Field(description="broker's timestamp of that event's record")
    requested_at: float
    priority: float = Field(default=0.0, description="expected gain; larger first when capacity is short")


class KnowledgeUpdate(Message):
    """knowledge → streams: this version is readable in the store."""

    user_id: str
    version: int
    model_version: str
    reason: RefreshReason
    count: int
    event_time: float
    history_hash: str
    caused_at: float
    generated_at: float
    written: bool = Field(default=True, description="false: the store already held a newer version")


class ScoredItem(BaseModel):
    """One recommended item and its log-probability under the served distribution."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    score: float


class Recommendation(Message):
    """ranking → consumer services: what to show a user now, and why."""

    user_id: str
    items: list[ScoredItem] = Field(description="best first, seen items excluded")
    reference: list[str] = Field(description="what behaviour alone would have recommended, best first")
    source: Literal["fused", "reference"]
    fallback: Fallback | None = Field(default=None, description="why knowledge was not used; null if it was")
    reason: RankingReason
    lagrange: float | None = Field(
        description="μ_u ≥ 1 of the trust region, by which fused probabilities are divided; null = reference served")
    kl: float = Field(ge=0, description="KL(p ‖ p_ref), nats: how far knowledge has moved the list")
    epsilon: float = Field(ge=0, description="radius of the trust region: full radius × trust; 0 = the reference")
    knowledge_version: int = Field(description="0 = none used")
    knowledge_age_s: float | None = Field(description="event time now − event time the knowledge includes")
    knowledge_behind: int | None = Field(description="events since the one the knowledge includes")
    model_version: str
    event_time: float = Field(description="newest event included")
    count: int = Field(description="events of this user included")
    caused_at: float
    requested_at: float
    ranked_at: float
    experiment: str = Field(default="", description="the online experiment's name; empty = none runs")
    arm: Arm = Field(default="", description="the user's arm in it; control is served what behaviour alone says")


class AlignmentSample(Message):
    """streams → alignment: knowledge contradicted by what the user did."""

    user_id: str
    history: list[str]
    item_id: str
    margin: float
    log_wealth: float
    knowledge_version: int
    model_version: str
    event_time: float


class ModelUpdate(Message):
    """alignment or an operator → workers: load this artifact or LoRA adapter.

    The version of an adapter is its model's, "+", and a name of its own.
    """

    model_version: str
    adapter: str | None = Field(default=None, description="folder of a peft LoRA adapter in the registry; null: none")
    withdrawn: list[str] = Field(
        default_factory=list, description="versions rolled back: knowledge made by them is not used any more")
    published_at: float


class DeadLetter(Message):
    """A record that could not be used, with where it stood and its original bytes (base64)."""

    topic: str
    partition: int
    offset: int
    reason: str
    value: str = Field(description="the record's bytes, base64")
    key: str | None = Field(default=None, description="the record's key, base64")
    role: str
    failed_at: float
