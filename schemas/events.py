"""The behaviour event in Freshet's own form. `schemas.reading` reads every form in which producers write it."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from schemas.reading.fields import DEFAULT_TYPE, MAX_ID, MAX_TYPE, identifier, label
from schemas.reading.times import seconds

# As seconds this is the year 5138. A larger number is milliseconds (or finer) sent by mistake; read as seconds, it
# would make every later event of the user count as late.
MAX_EVENT_TIME = 1e11


def _seconds(value: Any) -> Any:
    """Return a text as seconds since 1970; numbers are seconds already."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else seconds(value, 0.0)


EventTime = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=float | str),
    Field(ge=0, lt=MAX_EVENT_TIME, allow_inf_nan=False, description=(
        "since 1970 in seconds, milliseconds, microseconds or nanoseconds (the size tells), or ISO 8601 text")),
]
Identifier = Annotated[
    str, BeforeValidator(identifier, json_schema_input_type=str | int), Field(min_length=1, max_length=MAX_ID)]
Label = str | float | None  # what an optional text may be written as


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
    event_id: Annotated[str, BeforeValidator(partial(label, limit=MAX_ID), json_schema_input_type=Label)] = Field(
        default="", max_length=MAX_ID, description="computed from the other fields if absent")
    event_type: Annotated[
        str, BeforeValidator(partial(label, limit=MAX_TYPE, default=DEFAULT_TYPE), json_schema_input_type=Label),
    ] = Field(default=DEFAULT_TYPE, min_length=1, max_length=MAX_TYPE)

    def model_post_init(self, _: Any) -> None:
        """Set the event's id if the producer sent none."""
        if not self.event_id:
            event_id = make_event_id(self.user_id, self.item_id, self.event_time, self.event_type)
            object.__setattr__(self, "event_id", event_id)


def describe(error: ValidationError) -> str:
    """Return a validation error as one line, without the invalid values (the dead letter has the record's bytes)."""
    parts = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        where = ".".join(str(part) for part in detail["loc"])
        parts.append(f"{where}: {detail['msg']}" if where else detail["msg"])
    return "; ".join(parts)
