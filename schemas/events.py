"""The behaviour event: what a producer sends."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from schemas.errors import PoisonError

# As seconds this is the year 5138. A larger number is milliseconds (or finer) sent by mistake; read as seconds, it
# would make every later event of the user count as late.
MAX_EVENT_TIME = 1e11


def _seconds(value: Any) -> Any:
    """Return an ISO 8601 text as seconds since 1970; numbers are unchanged. Without a time zone, UTC is assumed."""
    if isinstance(value, bool):
        raise ValueError("a boolean is not a time")
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return value


EventTime = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=float | str),
    Field(ge=0, lt=MAX_EVENT_TIME, allow_inf_nan=False, description="seconds since 1970, or ISO 8601 text"),
]
Identifier = Annotated[str, Field(min_length=1, max_length=256, strict=True)]


def make_event_id(user_id: str, item_id: str, event_time: float, event_type: str) -> str:
    """Return an id for an event without one. Equal events get equal ids, so a resent event is a duplicate."""
    key = f"{user_id}\x1f{item_id}\x1f{event_time!r}\x1f{event_type}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=8).hexdigest()


class BehaviourEvent(BaseModel):
    """One interaction of a user with an item. Unknown fields pass through."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: int = Field(default=1, ge=1)
    user_id: Identifier
    item_id: Identifier
    event_time: EventTime
    event_id: str = Field(default="", max_length=256, description="computed from the other fields if absent")
    event_type: str = Field(default="interaction", min_length=1, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _fill_event_id(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("event_id") is None:
            data = {key: value for key, value in data.items() if key != "event_id"}
        return data

    def model_post_init(self, _: Any) -> None:
        """Set the event's id if the producer sent none."""
        if not self.event_id:
            event_id = make_event_id(self.user_id, self.item_id, self.event_time, self.event_type)
            object.__setattr__(self, "event_id", event_id)


def parse_event(value: bytes | None) -> BehaviourEvent:
    """Return the event in a record's bytes.

    Raises:
        PoisonError: the bytes are not a valid event; the reason is one line for the dead letter.
    """
    if not value:
        raise PoisonError("empty value")
    try:
        return BehaviourEvent.model_validate_json(value)
    except ValidationError as error:
        raise PoisonError(describe(error)) from error


def describe(error: ValidationError) -> str:
    """Return a validation error as one line, without the invalid values (the dead letter has the record's bytes)."""
    parts = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        where = ".".join(str(part) for part in detail["loc"])
        parts.append(f"{where}: {detail['msg']}" if where else detail["msg"])
    return "; ".join(parts)
