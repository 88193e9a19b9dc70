"""From a record's bytes, or a file's row, to behaviour events or the reason why not; streams and files share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pydantic_core

from schemas.errors import PoisonError
from schemas.events import make_event_id
from schemas.reading.changes import object_in
from schemas.reading.envelopes import open_envelope, snowplow_line
from schemas.reading.fields import DEFAULT_TYPE, MAX_ID, MAX_TYPE, PLAIN, Paths, by_name, first, identifier, label
from schemas.reading.framing import Headers, Schemas, frame_of
from schemas.reading.times import LATEST, seconds
from schemas.settings import EventField, EventSettings

BOM = b"\xef\xbb\xbf"
_FRAMED = 0  # first byte of Confluent's framing, see `framing`
_NAMES_SHOWN = 12


class ReadEvent(NamedTuple):
    """One event as everything here understands it; a tuple, since pydantic's model takes as long as all the rest."""

    user_id: str
    item_id: str
    event_time: float  # seconds since 1970
    event_type: str
    event_id: str


class EventReader:
    """Reads events, as the settings say where their fields are.

    Args:
        schemas: those of a schema registry, for records that its serializers wrote (Avro, Protobuf); None = of framed
            records only JSON is read.
        places: of the fields, as a file's columns have them; the settings' go first.
    """

    def __init__(
        self, settings: EventSettings, schemas: Schemas | None = None,
        places: Mapping[EventField, tuple[str, ...]] | None = None,
    ) -> None:
        self.earliest = settings.earliest_s
        self._envelope = settings.envelope
        self._mapped: dict[str, tuple[str, ...]] = {
            name: (path,) for name, path in settings.fields.items()}
        for field, columns in (places or {}).items():
            self._mapped.setdefault(field, columns)
        self._schemas = schemas

    @property
    def plain(self) -> bool:
        """Whether an event that has the plain names and values may be taken without this reader."""
        return not self._mapped and self._envelope in {"auto", "none"}

    def record(self, value: bytes | None, headers: Headers = ()) -> tuple[list[ReadEvent], str]:
        """Return the events of a record: one, or those of an array; and why the others are none, "" if all are.

        Raises:
            PoisonError: the record has no event at all; the reason is one line for the dead letter.
        """
        if not value:
            raise PoisonError("empty value")
        data = self._parse(value, headers)
        if not isinstance(data, list):
            return self.object(data, headers)
        if not data:
            raise PoisonError("an empty array")
        events: list[ReadEvent] = []
        reasons: list[str] = []
        for number, element in enumerate(data):
            try:
                some, reason = self.object(element, headers)
            except PoisonError as error:
                some, reason = [], error.reason
            events.extend(some)
            if reason:
                reasons.append(f"element {number}: {reason}")
        if not events:
            raise PoisonError(_joined(reasons, len(data)))
        return events, _joined(reasons, len(data)) if reasons else ""

    def row(self, row: Mapping[str, Any], latest: float = LATEST) -> ReadEvent:
        """Return the event of one flat row of plain or mapped names.

        Args:
            latest: later events are refused, seconds since 1970.

        Raises:
            PoisonError: the row is no event; the reason is one line.
        """
        return self._event(row, PLAIN, latest)

    def _parse(self, value: bytes, headers: Headers) -> Any:
        if self._schemas is not None and (frame := frame_of(value, headers)) is not None:
            try:
                return self._schemas.decode(frame)
            except ValueError as error:
                raise PoisonError(str(error)) from None
        if value[0] == _FRAMED and len(value) > 5:
            if value[5:].lstrip()[:1] not in {b"{", b"["}:
                raise PoisonError("framed by a schema registry's serializer, and what follows is no JSON; for Avro and "
                                  "Protobuf set FRESHET_REGISTRY_URL")
            value = value[5:]
        value = value.removeprefix(BOM)
        try:
            # pydantic's parser, for it takes NaN in fields that do not matter; Python's own writes it.
            data = pydantic_core.from_json(value)
        except ValueError as error:
            if (found := _no_single_json(value)) is not None:
                return found
            raise PoisonError(f"Invalid JSON: {error}{_rather(value)}") from None
        return object_in(data)  # a text that holds JSON: it was written as JSON twice

    def object(self, data: Any, headers: Headers = (), latest: float = LATEST) -> tuple[list[ReadEvent], str]:
        """Return the events of one decoded object, as `record` does."""
        if not isinstance(data, Mapping):
            raise PoisonError("not an object")
        try:
            opened = open_envelope(data, {name: value or b"" for name, value in headers}, self._envelope)
        except ValueError as error:
            raise PoisonError(str(error)) from None
        if len(opened) == 1 and not opened[0].why:
            return [self._event(opened[0].data, opened[0].paths, latest)], ""
        events, reasons = [], []
        for number, one in enumerate(opened):
            try:
                if one.why:
                    raise PoisonError(one.why)
                events.append(self._event(one.data, one.paths, latest))
            except PoisonError as error:
                reasons.append(f"part {number}: {error.reason}")
        if not events:
            raise PoisonError(_joined(reasons, len(opened)))
        return events, _joined(reasons, len(opened)) if reasons else ""

    def _event(self, data: Mapping[str, Any], paths: Paths, latest: float) -> ReadEvent:
        at = {**paths, **self._mapped} if self._mapped else paths
        field = "user_id"
        try:
            user = identifier(self._value(data, at, field))
            field = "item_id"
            item = identifier(self._value(data, at, field))
            field = "event_time"
            value = self._value(data, at, field)
            if value is None:
                raise ValueError("missing")
            moment = seconds(value, self.earliest, latest)
            field = "event_type"
            kind = label(self._value(data, at, field), MAX_TYPE, DEFAULT_TYPE)
            field = "event_id"
            event_id = label(self._value(data, at, field), MAX_ID) or make_event_id(user, item, moment, kind)
        except ValueError as error:
            raise PoisonError(_reason(field, str(error), data, at[field])) from None
        return ReadEvent(user, item, moment, kind, event_id)


    def _value(self, data: Mapping[str, Any], at: Paths, field: str) -> Any:
        value = first(data, at[field])
        # An envelope, the settings or a producer that names a field and leaves it empty means that place.
        if value is None and at[field] is PLAIN[field] and not any(name in data for name in PLAIN[field]):
            return by_name(data, field)
        return value


def _reason(field: str, why: str, data: Mapping[str, Any], places: tuple[str, ...]) -> str:
    """Return a reason that names the field, where it was looked for and, if it is missing, what there is instead."""
    where = field if places[0] == field else f"{field} ({' or '.join(places)})"
    if why != "missing":
        return f"{where}: {why}"
    if any(path in data for path in places):
        return f"{where}: null or empty"
    names = ", ".join(str(name)[:40] for name in list(data)[:_NAMES_SHOWN]) or "nothing"
    return f"{where}: missing; the event has {names}; FRESHET_EVENTS_FIELDS={field}=NAME maps another name"


def _no_single_json(value: bytes) -> Any:
    """Return what a record holds that is no JSON by itself: an object a line, or Snowplow's enriched event."""
    if value[-1:] == b"\x00" and (text := value.rstrip(b"\x00")):  # C's end of a text was sent along
        value = text
    try:
        if value.count(b"\t") > 100:
            return snowplow_line(value.decode())
        lines = [line for line in value.split(b"\n") if line.strip()]
        return [pydantic_core.from_json(line) for line in lines] if len(lines) > 1 else pydantic_core.from_json(value)
    except ValueError:
        return None


def _rather(value: bytes) -> str:
    """Return what the bytes look like, for the reason."""
    for start, what in _STARTS:
        if value.startswith(start):
            return f"; {what}"
    return ""


_STARTS = (
    (b"\x1f\x8b", "compressed by gzip: send the JSON itself, with compression.type=gzip of the producer"),
    (b"\xff\xfe", "UTF-16: send UTF-8"), (b"\xfe\xff", "UTF-16: send UTF-8"),
    (b"{'", "a Python dict as text: send json.dumps(event)"), (b"Obj\x01", "an Avro file: send each event by itself"),
    (b"\xc3\x01", "Avro without a schema registry's framing"), (b"<", "XML or HTML"))


def _joined(reasons: list[str], of: int) -> str:
    return f"{len(reasons)} of {of} are unusable: " + "; ".join(reasons[:5])
