"""Records that a schema registry's serializer wrote: which schema, and what it makes of the bytes.

Nothing here asks the registry: `streams/registry` does, before a batch is read. Two framings are known, those of
Confluent's serializers: a zero byte and the schema's number in four bytes before the payload, or the number or UUID in
the header `__value_schema_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

import pydantic_core

HEADER = "__value_schema_id"
_NUMBERED, _UUID = 0, 1  # first bytes
_LARGEST_ID = 2**31 - 1  # registries count in Java's int
KEPT = 1000  # schemas; one with its classes takes some 50 kB

Headers = Iterable[tuple[str, bytes | None]]
Kind = Literal["AVRO", "PROTOBUF", "JSON"]
SchemaId = int | UUID
Decode = Callable[[bytes], Any]  # a payload to plain data; ValueError if it is none


class Frame(NamedTuple):
    """A framed record: its schema and its payload, which for Protobuf begins with the message's place in the file."""

    schema: SchemaId
    payload: bytes


class Written(NamedTuple):
    """A schema as the registry gives it: Avro and JSON as text, Protobuf as a file descriptor in base64.

    `references` are the schemas that it imports, and theirs, under the names it uses, imported before importing.
    """

    kind: Kind
    text: str
    references: Sequence[tuple[str, str]] = ()


def frame_of(value: bytes | None, headers: Headers = ()) -> Frame | None:
    """Return a record's frame, None if it has none."""
    for name, mark in headers or ():
        if name == HEADER and mark is not None and (found := _schema_id(mark)) is not None:
            schema, rest = found
            return Frame(schema, rest + (value or b""))  # the place of a Protobuf message is in the header, too
    if value and value[0] == _NUMBERED and (found := _schema_id(value)) is not None:
        return Frame(*found)
    return None


def _schema_id(data: bytes) -> tuple[SchemaId, bytes] | None:
    if len(data) >= 5 and data[0] == _NUMBERED:
        return int.from_bytes(data[1:5], "big"), data[5:]
    if len(data) >= 17 and data[0] == _UUID:
        return UUID(bytes=data[1:17]), data[17:]
    return None


class Schemas:
    """What is known of the registry's schemas. Bounded: those not used for longest are forgotten.

    Args:
        kept: so many, but always those of the batch in hand.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._known: dict[SchemaId, tuple[Decode | str, float]] = {}  # decoder or why there is none, good until

    def __len__(self) -> int:
        return len(self._known)

    def unknown(self, frames: Iterable[Frame], now: float) -> list[SchemaId]:
        """Return the schemas of these records that the registry must be asked for, each once.

        Args:
            now: monotonic seconds; what the registry did not know a minute ago it may know by now.
        """
        wanted = dict.fromkeys(frame.schema for frame in frames)
        for schema in wanted:
            if schema in self._known:
                self._known[schema] = self._known.pop(schema)  # the newest go to the end
        for schema in list(self._known)[:max(0, len(self._known) - self._kept)]:
            if schema not in wanted:
                del self._known[schema]
        return [schema for schema in wanted if not _beyond(schema)
                and (schema not in self._known or self._known[schema][1] < now)]

    def learn(self, schema: SchemaId, written: Written | str, until: float) -> None:
        """Note a schema, or why there is none, for use until then (monotonic seconds)."""
        if isinstance(written, str):
            self._known[schema] = (written, until)
            return
        try:
            self._known[schema] = (_decoder(written), float("inf"))
        except Exception as error:  # of a library, on a schema that nobody has thought of: no event is worth a crash
            why = str(error) if isinstance(error, ValueError) else type(error).__name__
            self._known[schema] = (f"schema {schema} cannot be used: {why}", until)

    def decode(self, frame: Frame) -> Any:
        """Return the data of a framed record.

        Raises:
            ValueError: it has no known schema, or the bytes are not of that schema; the text is one line.
        """
        found, _ = self._known.get(frame.schema, (f"the schema registry has no schema {frame.schema}", 0.0))
        if not isinstance(found, str):
            try:
                return found(frame.payload)
            except ValueError as error:
                raise ValueError(f"not of its schema {frame.schema}: {error}") from None
        if frame.payload.lstrip()[:1] in {b"{", b"["}:  # JSON says itself what it is
            try:
                return pydantic_core.from_json(frame.payload)
            except ValueError:
                pass
        raise ValueError(found)


def _beyond(schema: SchemaId) -> bool:
    return isinstance(schema, int) and schema > _LARGEST_ID


def _decoder(written: Written) -> Decode:
    """Return the decoder of a schema; the libraries are imported when the first schema needs one.

    Raises:
        ValueError: it is no such schema, or one that hostile bytes could use against the reader.
    """
    if written.kind == "AVRO":
        from schemas.reading.avro import avro_decoder

        return avro_decoder(written.text, written.references)
    if written.kind == "PROTOBUF":
        from schemas.reading.protobuf import protobuf_decoder

        return protobuf_decoder(written.text, written.references)
    return pydantic_core.from_json
