"""Where an event's fields are in what a producer sends, and what their values mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_ID = 256  # characters
MAX_TYPE = 64  # characters
DEFAULT_TYPE = "interaction"

# The places of each field, of which the first that has a value counts; "a.b.0" is the first in b in a.
Paths = Mapping[str, tuple[str, ...]]
# What producers call the time of an event, in the order in which they count.
PLAIN: Paths = {
    "user_id": ("user_id",), "item_id": ("item_id",), "event_time": ("event_time", "timestamp", "ts", "time"),
    "event_type": ("event_type",), "event_id": ("event_id",)}


def lookup(data: Any, path: str) -> Any:
    """Return the value at a path of names and list positions joined by dots; None if it is not there."""
    if isinstance(data, Mapping) and path in data:  # also names that hold a dot
        return data[path]
    for name in path.split("."):
        if isinstance(data, Mapping):
            data = data.get(name)
        elif isinstance(data, Sequence) and not isinstance(data, str | bytes) and name.isdecimal():
            at = int(name)
            data = data[at] if at < len(data) else None
        else:
            return None
    return data


def first(data: Any, paths: Sequence[str]) -> Any:
    """Return the first value that is neither absent, null nor an empty text; None if there is none."""
    for path in paths:
        value = lookup(data, path)
        if value is not None and value != "":
            return value
    return None


def identifier(value: Any) -> str:
    """Return an id as text: 7, 7.0 and "7" are one.

    Raises:
        ValueError: it is no id; the text says why.
    """
    if isinstance(value, bool):
        raise ValueError("a boolean is no id")
    if isinstance(value, float):
        # Above 2^53 a float has lost digits: two ids would become one.
        if not value.is_integer() or abs(value) > 2**53:
            raise ValueError("a number with a fraction or more than 53 bits is no id; send it as text")
        value = int(value)
    if isinstance(value, int):
        if abs(value) >= 10**MAX_ID:  # Python refuses to write numbers of thousands of digits
            raise ValueError(f"longer than {MAX_ID} characters")
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("missing" if value is None else "neither a text nor a number")
    if not value:
        raise ValueError("missing")
    if len(value) > MAX_ID:
        raise ValueError(f"longer than {MAX_ID} characters")
    return value


def label(value: Any, limit: int, default: str = "") -> str:
    """Return an optional field as text of at most `limit` characters, `default` if it is null or empty.

    Raises:
        ValueError: it is a list or an object.
    """
    if value is None or value == "":
        return default
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    if isinstance(value, int) and abs(value) >= 10**limit:
        return default
    if not isinstance(value, str | int | float):
        raise ValueError("neither a text nor a number")
    return str(value)[:limit]
