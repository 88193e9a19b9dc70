"""Encode messages with orjson and decode them with pydantic. Invalid bytes raise only `PoisonError`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import orjson
from pydantic import BaseModel, ValidationError

from schemas.errors import PoisonError
from schemas.events import describe
from schemas.messages import MESSAGE_VERSION, DeadLetter, Message

M = TypeVar("M", bound=BaseModel)
# A letter must fit into 900 kB, the streams role's largest batch (brokers take 1 MiB by default). Base64 makes 853 kB
# of the value and 13 kB of the key; a reason of control characters takes 12 kB, since JSON spells each with six.
VALUE_KEPT = 640_000  # bytes
_KEY_KEPT = 10_000  # bytes
_HEADERS_KEPT = 16_000  # bytes of JSON
_REASON_KEPT = 2_000  # characters


def encode(message: BaseModel) -> bytes:
    """Return a message as JSON bytes, unknown fields included."""
    fields = message.model_dump(mode="python")
    try:
        return orjson.dumps(fields)
    except TypeError:  # an unknown field with a number beyond 64 bits: it passes through as it came
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def decode(model: type[M], value: bytes | None) -> M:
    """Return the message of type `model` in `value`.

    Raises:
        PoisonError: the bytes are not such a message, or a newer release's that this one would misread.
    """
    if not value:
        raise PoisonError("empty value")
    try:
        message = model.model_validate_json(value)
    except ValidationError as error:
        raise PoisonError(_newer(value) or describe(error)) from error
    if isinstance(message, Message) and message.schema_version > MESSAGE_VERSION:
        raise PoisonError(_newer(value))
    return message


def _newer(value: bytes) -> str:
    """Return that a newer release wrote the message, "" if it did not."""
    try:
        found = int(orjson.loads(value)["schema_version"])
    except (ValueError, TypeError, KeyError):
        return ""
    return "" if found <= MESSAGE_VERSION else (
        f"schema_version {found} is newer than this release's {MESSAGE_VERSION}: upgrade this role, then produce the "
        "record again")


def packed_layout(data: bytes) -> int:
    """Return the layout number that a MessagePack array of any release starts with; 0 = it is no such array."""
    try:
        return int(msgspec.msgpack.decode(data)[0])
    except (msgspec.MsgspecError, TypeError, ValueError, LookupError, OverflowError, RecursionError):
        return 0


def dead_letter(
    topic: str, partition: int, offset: int, reason: str, *,
    value: bytes | None, key: bytes | None, role: str, failed_at: float, kept: int = VALUE_KEPT,
    headers: Sequence[tuple[str, bytes | None]] = (),
) -> DeadLetter:
    """Return the dead letter of one record; `value`, `key` and `headers` are as they came.

    What would make the letter larger than a broker takes is cut, and the reason says so.

    Args:
        kept: bytes of the value at most.
    """
    reason = reason[:_REASON_KEPT].encode(errors="replace").decode()  # JSON has no lone surrogates
    if value is not None and len(value) > kept:
        reason = f"{reason} (first {kept} of {len(value)} bytes kept)"
    if key is not None and len(key) > _KEY_KEPT:
        reason = f"{reason} (first {_KEY_KEPT} of {len(key)} bytes of the key kept)"
    carried: list[tuple[str, str | None]] = []
    size = 0
    for name, data in headers:
        header = name.encode(errors="replace").decode(), None if data is None else base64.b64encode(data).decode()
        size += len(orjson.dumps(header)) + 1
        if size > _HEADERS_KEPT:
            reason = f"{reason} (first {len(carried)} of {len(headers)} headers kept)"
            break
        carried.append(header)
    return DeadLetter(
        topic=topic, partition=partition, offset=offset, reason=reason, role=role, failed_at=failed_at,
        value=base64.b64encode((value or b"")[:kept]).decode(),
        key=None if key is None else base64.b64encode(key[:_KEY_KEPT]).decode(), headers=carried,
    )
