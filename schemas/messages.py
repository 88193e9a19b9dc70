"""The messages between the roles and with other services, one pydantic model per topic.

Times named `*_at` are wall-clock seconds since 1970; `event_time` comes from the producer's clock. `count` is the
number of events applied to a user's state so far. It orders a user's messages and shows how far behind knowledge is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from schemas.events import Identifier
from schemas.experiment import Arm
from schemas.reading.fields import MAX_ID, identifier

RefreshReason = Literal["cold_start", "drift", "contradiction", "stale"]
RankingReason = Literal["event", "knowledge", "seen"]
# Beyond it orjson and MessagePack refuse to write a number, and other readers round it: JavaScript, and Qdrant where it
# compares versions.
LARGEST = 2**53 - 1
Whole = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
Source = Literal["fused", "items", "reference", "popular"]
Fallback = Literal[
    "no_knowledge", "no_history", "store_unavailable", "damaged_knowledge", "old_knowledge", "no_trust", "control"]

# Raised when a message changes in a way that an older release would misread. A new field is no such change.
MESSAGE_VERSION = 1
# What comes back to streams becomes part of a user's state, so it is bounded: by half of the largest, since streams
# counts on from there, and one record would end a user's versions.
Count = Annotated[int, Field(ge=0, le=2**52)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
Version = Annotated[str, Field(max_length=512)]
Identity = Annotated[str, Field(max_length=256)]
# Labels of items that a list is bounded to, or kept free of.
LABELS, LABEL = 20, 100
Labels = Annotated[list[Annotated[str, Field(min_length=1, max_length=LABEL)]], Field(max_length=LABELS)]


class Message(BaseModel):
    """Base class of all messages: frozen, versioned, accepts fields of newer releases."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    schema_version: Whole = Field(default=1, ge=1)


class JudgedEvent(BaseModel):
    """An event to be scored with the knowledge and history from before the event."""

    model_config = ConfigDict(frozen=True)

    event_id: str
    item_id: str
    position: Whole = Field(ge=0, description="index in the request's history; history[:position] is before the event")
    count: Whole = Field(ge=1, description="the user's event count with this event")


class UserSeen(Message):
    """producers → streams: a user is here and wants a list, with an event or without."""

    user_id: Annotated[str, BeforeValidator(identifier, json_schema_input_type=str | int)] = Field(
        min_length=1, max_length=MAX_ID)
    allow: Labels | None = Field(
        default=None, description="only items with one of these labels; [] = all; null = as kept for the user")
    deny: Labels | None = Field(
        default=None, description="no items with one of these labels; null = as kept for the user")
    keep: bool = Field(default=False, description="keep `allow` and `deny` for the user's later lists")


class RankingRequest(Message):
    """streams → ranking: a user's state changed; recommend again and judge the new events."""

    user_id: str
    reason: RankingReason
    history: list[str] = Field(description="item ids by event time, oldest first, bounded")
    seen: list[str] = Field(default_factory=list, description="distinct items not to recommend, beyond `history`")
    repeat: bool = Field(
        default=False, description="items of `history` may be recommended again, unless they are in `seen`")
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="what new events add to the popularity of their items, where it is not 1 for each judged event")
    allow: list[str] = Field(default_factory=list, description="only items with one of these labels; [] = all")
    deny: list[str] = Field(default_factory=list, description="no items with one of these labels")
    judged: list[JudgedEvent] = Field(default_factory=list)
    count: Whole
    knowledge_version: Whole = Field(default=0, description="newest version known to be in the store; 0 = none")
    knowledge_model_version: str = ""
    trust: float = Field(default=1.0, ge=0.0, le=1.0, description="share of the full trust radius")
    event_time: float = Field(description="event time of the newest event included")
    caused_at: float = Field(description="broker timestamp of the record that caused this request")
    requested_at: float


class Margin(BaseModel):
    """The value of knowledge on one event: log p_fused − log p_ref, in nats."""

    model_config = ConfigDict(frozen=True)

    event_id: Identity
    item_id: Identity
    count: Count
    value: float = Field(allow_inf_nan=False)
    knowledge_version: Count


class Judgement(Message):
    """ranking → streams: the margins of a user's newest events, oldest first."""

    user_id: str
    margins: list[Margin]
    model_version: Version
    knowledge_model_version: Version = Field(
        default="", description="version of the model or adapter that made the knowledge")
    codes: list[Count] = Field(default_factory=list, description="codeword of each soft instruction; [] = not known")
    event_time: Seconds
    judged_at: Seconds


class KnowledgeRequest(Message):
    """streams → knowledge: generate new knowledge for this user. The newest request per user wins."""

    user_id: str
    version: Whole = Field(ge=1, description="version of the new knowledge, increasing per user")
    reason: RefreshReason
    history: list[str]
    count: Whole
    event_id: str = Field(description="event that caused the refresh")
    event_time: float
    caused_at: float = Field(description="broker timestamp of that event's record")
    requested_at: float
    priority: float = Field(default=0.0, description="expected gain; larger goes first when capacity is short")


class KnowledgeUpdate(Message):
    """knowledge → streams: this version is in the store."""

    user_id: str
    version: Count
    model_version: Version
    reason: RefreshReason
    count: Count
    event_time: Seconds
    history_hash: str
    caused_at: Seconds
    generated_at: Seconds
    written: bool = Field(default=True, description="false = the store already had a newer version")
    spent_s: Seconds | None = Field(
        default=None, description="its share of the seconds that the batch took in the language model; null = it was "
                                  "in the store already")
    spent_tokens: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="its share of the batch's tokens")


class ScoredItem(BaseModel):
    """One recommended item and its log-probability under the served distribution."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    score: float


class Recommendation(Message):
    """ranking → consumer services: the items to show a user now, with the reason."""

    user_id: str
    items: list[ScoredItem] = Field(description="best first, seen items excluded")
    reference: list[str] = Field(description="items that behaviour alone would recommend, best first")
    written: dict[str, str] = Field(
        default_factory=dict,
        description="what a language model wrote of the items, by item id; empty unless `ranking.quote` is set")
    source: Source = Field(
        description="what it stands on: fused = behaviour, item knowledge and the user's knowledge; items = behaviour "
                    "and item knowledge; reference = behaviour alone; popular = what others take now, for a user "
                    "without history")
    fallback: Fallback | None = Field(
        default=None, description="why the user's knowledge was not used; null = it was used")
    rules: list[str] = Field(
        default_factory=list,
        description="rules that changed `items`: deny=LABEL, allow=LABEL|LABEL, boost=NAME, most=NAME, pin=ITEM")
    reason: RankingReason
    lagrange: float | None = Field(
        description="μ_u ≥ 1 of the trust region, the divisor of fused probabilities; null = reference served")
    kl: float = Field(ge=0, description="KL(p ‖ p_ref), nats: how much knowledge changed the distribution")
    epsilon: float = Field(ge=0, description="radius of the trust region: full radius × trust; 0 = the reference")
    knowledge_version: Whole = Field(description="version of the knowledge used; 0 = none")
    knowledge_age_s: float | None = Field(
        description="event time of the newest event − that of the newest event in the knowledge")
    knowledge_behind: Whole | None = Field(description="number of events that the knowledge lacks")
    model_version: str
    event_time: float = Field(description="event time of the newest event included")
    count: Whole = Field(description="number of this user's events included")
    caused_at: float
    requested_at: float
    ranked_at: float
    experiment: str = Field(default="", description="name of the online experiment; empty = none")
    arm: Arm = Field(default="", description="the user's arm; control gets recommendations from behaviour alone")


class AlignmentSample(Message):
    """streams → alignment: an event that contradicts the user's knowledge."""

    user_id: str
    history: list[str]
    item_id: str
    margin: float
    log_wealth: float
    knowledge_version: Whole
    model_version: str
    event_time: float


ERASED = "freshet-erased"
"""Header of a tombstone that ends a user's data: how many records of the user its writer removed, as a number."""


class Erasure(Message):
    """an operator or another service → streams: remove what is held of this user.

    What streams and the workers tell each other on the way are tombstones: records with the user's key and no value.
    """

    user_id: Identifier
    requested_at: Seconds = Field(default=0.0, description="0 = not said")


class ModelUpdate(Message):
    """alignment, guard or an operator → workers: load this model or LoRA adapter.

    The version of an adapter is the model's version, "+" and the adapter's name.
    """

    model_version: str
    adapter: str | None = Field(default=None, description="folder of a peft LoRA adapter in the registry; null = none")
    withdrawn: list[str] = Field(
        default_factory=list, description="versions rolled back; knowledge made by them is no longer used")
    published_at: float


class DeadLetter(Message):
    """An unusable record, with its position in the topic and its original bytes (base64).

    Also a message of a role's own that is larger than the broker takes: its topic is the one it was meant for.
    """

    topic: str
    partition: Whole = Field(description="−1 = not written to any")
    offset: Whole = Field(description="−1 = not written")
    reason: str
    value: str = Field(description="the record's bytes, base64")
    key: str | None = Field(default=None, description="the record's key, base64")
    headers: list[tuple[str, str | None]] = Field(
        default_factory=list, description="the record's headers in their order: name, value in base64")
    role: str
    failed_at: float
