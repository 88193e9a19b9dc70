"""Avro payloads to plain data, by fastavro; and what keeps hostile bytes from harming it.

fastavro reads in C. A schema that contains itself lets a record of 5,000 bytes nest 5,000 deep, and the process dies of
a stack overflow (fastavro 1.13.1). Elements of no bytes let a record of ten bytes claim 2^60 of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from fastavro import parse_schema, read, schemaless_reader
from fastavro.schema import SchemaParseException, UnknownType

_DEEPEST = 1000  # records within records; 2,000 still fit into a stack of 8 MiB
_STEPS = 2000  # fields that are read without a byte between them
_LONGEST_DECIMAL = 32  # bytes; an int of a million digits takes seconds to print
_ROOT = "_freshet_event"  # without a namespace, which the types within would inherit
_NAMED = {"record", "error", "enum", "fixed"}


def avro_decoder(text: str, references: Sequence[tuple[str, str]] = ()) -> Callable[[bytes], Any]:
    """Return the decoder of a schema.

    Args:
        text: the schema as JSON.
        references: (name, schema) of the named types it uses, those first that others use.

    Raises:
        ValueError: it is no Avro schema, or not one that is safe to read by.
    """
    named: dict[str, Any] = {}
    try:
        for _, reference in references:
            parse_schema(orjson.loads(reference), named_schemas=named)
        # A record adds no byte around its field, and fastavro finds named types only from a record on.
        schema = parse_schema({"type": "record", "name": _ROOT, "fields": [
            {"name": "value", "type": orjson.loads(text)}]}, named_schemas=named)
    except UnknownType as error:
        raise ValueError(f"Avro type {' '.join(str(error.name).split())[:80]} is not defined") from None
    except (SchemaParseException, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"no Avro schema ({type(error).__name__})") from None
    longest = _longest(schema, named)

    def decode(payload: bytes) -> Any:
        if longest is not None and len(payload) > longest:
            raise ValueError(f"Avro, {len(payload)} bytes; by a schema that contains itself at most {longest} are read")
        file = io.BytesIO(payload)
        try:
            data: Any = schemaless_reader(file, schema, None)
        except Exception as error:  # whatever fastavro's C code makes of strange bytes: EOF, IndexError, Unicode
            raise ValueError(f"Avro ({type(error).__name__})") from None
        if file.tell() != len(payload):
            raise ValueError(f"Avro, {len(payload) - file.tell()} bytes are left over")
        return data["value"]

    return decode


def _longest(schema: Any, named: Mapping[str, Any]) -> int | None:
    """Return how many bytes may be read by a schema, None = any number.

    Raises:
        ValueError: a few bytes could stand for any number of values.
    """
    parts = [part for one in (schema, *named.values()) for part in _parts(one) if isinstance(part, dict)]
    if not all(_is_size(part.get("size")) for part in parts if part.get("type") == "fixed"):
        raise ValueError("Avro fixed without a size")
    if any(_empty(part["items"], named) for part in parts if part.get("type") == "array"):
        raise ValueError("Avro array of elements without a byte")
    if _steps(schema, named, {}) > _STEPS:
        raise ValueError(f"Avro records of more than {_STEPS} fields")
    records = {name: _uses(one, named) for name, one in named.items()}
    return _DEEPEST // max(1, len(records)) if any(_reaches(name, name, records, set()) for name in records) else None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _parts(schema: Any) -> Iterator[Any]:
    """Yield a schema and all that is defined within it; names of types are not followed."""
    yield schema
    if isinstance(schema, list):
        inner = schema
    elif isinstance(schema, dict):
        inner = [field["type"] for field in schema.get("fields", ())]
        inner += [schema[name] for name in ("items", "values") if name in schema]
        if isinstance(schema.get("type"), dict | list):
            inner.append(schema["type"])
    else:
        return
    for one in inner:
        yield from _parts(one)


def _uses(schema: Any, named: Mapping[str, Any]) -> set[str]:
    used = {part for part in _parts(schema) if isinstance(part, str)}
    used |= {part["type"] for part in _parts(schema) if isinstance(part, dict) and isinstance(part.get("type"), str)}
    used |= {part["name"] for part in _parts(schema) if isinstance(part, dict) and part is not schema
             and part.get("type") in _NAMED}
    return used & named.keys()


def _reaches(start: str, name: str, uses: Mapping[str, set[str]], seen: set[str]) -> bool:
    for other in uses[name]:
        if other == start:
            return True
        if other not in seen:
            seen.add(other)
            if _reaches(start, other, uses, seen):
                return True
    return False


def _empty(schema: Any, named: Mapping[str, Any]) -> bool:
    """Tell whether a value of a type may take no byte."""
    if isinstance(schema, str):
        return schema == "null" or (schema in named and _empty(named[schema], named))
    if isinstance(schema, dict):
        kind = schema["type"]
        if kind in ("record", "error"):
            return all(_empty(field["type"], named) for field in schema["fields"])
        return schema.get("size", 0) <= 0 if kind == "fixed" else \
            _empty(kind, named) if kind not in ("array", "map", "enum") else False
    return False


def _steps(schema: Any, named: Mapping[str, Any], counted: dict[str, int]) -> int:
    """Return how many values are read at least for one of a type."""
    if isinstance(schema, str):
        if schema not in named:
            return 1
        if schema not in counted:
            counted[schema] = _STEPS + 1  # a record that contains itself without a choice never ends
            counted[schema] = _steps(named[schema], named, counted)
        return counted[schema]
    if isinstance(schema, dict) and "fields" in schema:
        return 1 + sum(_steps(field["type"], named, counted) for field in schema["fields"])
    if isinstance(schema, dict) and isinstance(schema.get("type"), dict):
        return _steps(schema["type"], named, counted)
    return 1


# fastavro's own readers of logical types raise for values that a type cannot hold (9223372036854775807 as "for ever"),
# and an event would be lost for a field that nobody reads. These give the bare value then.
def _moment(per_second: int) -> Callable[..., Any]:
    def convert(value: int, *_: Any) -> Any:
        try:
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value * 1_000_000 // per_second)
        except OverflowError:
            return value

    return convert


def _day(value: int, *_: Any) -> Any:
    try:
        return date(1970, 1, 1) + timedelta(days=value)
    except OverflowError:
        return value


def _decimal(value: bytes, schema: Mapping[str, Any], *_: Any) -> Any:
    scale = schema.get("scale", 0)
    if len(value) > _LONGEST_DECIMAL or not isinstance(scale, int) or not 0 <= scale <= 100:
        return value
    unscaled = int.from_bytes(value, "big", signed=True)
    whole, rest = divmod(unscaled, 10**scale)
    return unscaled / 10**scale if rest else whole


def _uuid(value: bytes, *_: Any) -> Any:
    return str(UUID(bytes=value)) if len(value) == 16 else value


def _as_it_is(value: Any, *_: Any) -> Any:
    return value


_READERS: dict[str, Callable[..., Any]] = {
    "long-timestamp-millis": _moment(1000), "long-local-timestamp-millis": _moment(1000),
    "long-timestamp-micros": _moment(1_000_000), "long-local-timestamp-micros": _moment(1_000_000),
    "long-timestamp-nanos": _moment(1_000_000_000), "long-local-timestamp-nanos": _moment(1_000_000_000),
    "int-date": _day, "bytes-decimal": _decimal, "fixed-decimal": _decimal, "fixed-uuid": _uuid,
    "string-uuid": _as_it_is, "int-time-millis": _as_it_is, "long-time-micros": _as_it_is}
read.LOGICAL_READERS.update(_READERS)
