"""Encode messages with orjson and decode them with pydantic. Invalid bytes raise only `PoisonError`."""

from __future__ import annotations

import base64
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from schemas.errors import PoisonError
from schemas.events import describe
from schemas.messages import DeadLetter

M = TypeVar("M", bound=BaseModel)


def encode(message: BaseModel) -> bytes:
    """Return a message as JSON bytes, unknown fields included."""
    return orjson.dumps(message.model_dump(mode="python"))


def decode(model: type[M], value: bytes | None) -> M:
    """Return the message of type `model` in `value`.

    Raises:
        PoisonError: the bytes are not such a message.
    """
    if not value:
        raise PoisonError("empty value")
    try:
        return model.model_validate_json(value)
    except ValidationError as error:
        raise PoisonError(describe(error)) from error


def dead_letter(
    topic: str, partition: int, offset: int, reason: str, *,
    value: bytes | None, key: bytes | None, role: str, failed_at: float,
) -> DeadLetter:
    """Return the dead letter of one record; `value` and `key` are its original bytes."""
    return DeadLetter(
        topic=topic, partition=partition, offset=offset, reason=reason, role=role, failed_at=failed_at,
        value=base64.b64encode(value or b"").decode(),
        key=None if key is None else base64.b64encode(key).decode(),
    )
