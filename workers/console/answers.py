"""The bodies of the HTTP interface's answers, which are also its documentation (`openapi`).

They are a promise to programs: fields are added, never renamed or removed within `/v1`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_CONFIG = ConfigDict(frozen=True, from_attributes=True, protected_namespaces=())


class ItemInList(BaseModel):
    """An item of a list."""

    model_config = _CONFIG

    item_id: str
    title: str = Field(default="", description="as the catalogue has it; empty = not known")
    score: float | None = Field(default=None, description="log-probability, or a similarity")
    written: str = Field(default="", description="what a language model wrote of it")


class RecommendationsAnswer(BaseModel):
    """What to show a user now, and why; as in the topic `recommendations`."""

    model_config = _CONFIG

    user_id: str
    items: list[ItemInList] = Field(description="best first")
    reference: list[ItemInList] = Field(description="what behaviour alone would show, best first")
    source: str = Field(description="fused, items, reference or popular: what the list stands on")
    fallback: str | None = Field(description="why the user's knowledge was not used; null = it was")
    reason: str = Field(description="event or knowledge: what caused the list")
    lagrange: float | None
    kl: float = Field(description="KL(p ‖ p_ref), nats")
    epsilon: float = Field(description="radius of the trust region")
    knowledge_version: int = Field(description="0 = none was used")
    knowledge_age_s: float | None
    knowledge_behind: int | None = Field(description="events that the knowledge lacks")
    model_version: str
    event_time: float = Field(description="of the newest event included, seconds since 1970")
    count: int = Field(description="events of the user included")
    ranked_at: float = Field(description="seconds since 1970")
    experiment: str
    arm: str


class KnowledgeVersion(BaseModel):
    """A version of a user's knowledge, made or asked for."""

    model_config = _CONFIG

    version: int
    reason: str = Field(description="cold_start, drift, contradiction or stale")
    model_version: str | None = Field(description="null = not made yet")
    requested_at: float | None
    generated_at: float | None = Field(description="null = not made yet")
    freshness_s: float | None = Field(description="seconds from the event that caused it until it was made")
    event_time: float
    count: int = Field(description="events of the user included")


class KnowledgeAnswer(BaseModel):
    """The versions of a user's knowledge, newest first."""

    model_config = _CONFIG

    user_id: str
    version: int = Field(description="the newest that was made; 0 = none yet")
    versions: list[KnowledgeVersion]


class HistoryEvent(BaseModel):
    """An event that a user's state holds."""

    model_config = _CONFIG

    item_id: str
    title: str
    event_type: str
    event_time: float
    count: int


class Drift(BaseModel):
    """The drift statistic; knowledge is refreshed where `value` reaches `threshold`."""

    model_config = _CONFIG

    value: float
    threshold: float | None
    drifted: bool


class Trust(BaseModel):
    """The bets on a user's knowledge; at `log_limit` it is contradicted."""

    model_config = _CONFIG

    trust: float
    standing: float
    log_wealth: float
    log_limit: float
    contradicted_at: int


class StateAnswer(BaseModel):
    """A user's state, as streams last wrote it."""

    model_config = _CONFIG

    user_id: str
    count: int = Field(description="events applied")
    history: list[HistoryEvent] = Field(description="newest first, bounded")
    seen: int = Field(description="older items that are not recommended again")
    drift: Drift
    trust: Trust
    knowledge_version: int
    knowledge_count: int
    model_version: str
    pending: int = Field(description="version that was asked for and has not come; 0 = none")
    event_time: float
    updated_at: float


class ItemTaker(BaseModel):
    """A user who took an item."""

    model_config = _CONFIG

    user_id: str
    event_time: float


class ItemAnswer(BaseModel):
    """What is known of an item."""

    model_config = _CONFIG

    item_id: str
    title: str
    attributes: dict[str, Any]
    written: str
    model_version: str
    by_behaviour: list[ItemInList] = Field(description="people take these with it; scores are weights")
    by_text: list[ItemInList] = Field(description="similar texts; scores are cosines")
    takers: list[ItemTaker] = Field(description="newest first, bounded")
    problem: str = Field(description="why neighbours by text are not known, empty = they are, or there are none")


class HealthAnswer(BaseModel):
    """Whether this instance can answer."""

    model_config = _CONFIG

    status: str = Field(description="ok, or reading: the topics are being read since the start")
    read: float = Field(description="share of the records that were there at the start and are read, 0 to 1")


class ProblemAnswer(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
