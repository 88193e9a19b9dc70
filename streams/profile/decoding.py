"""Decode records into events: a fast path for plain records, the reader for all others.

If a record is plain ASCII without escapes, has only known fields and its time in seconds, msgspec decodes it to the
same result as the reader in a fifth of the time. All other records (other names or units, unknown fields, envelopes,
any error) go to the reader, which decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
import orjson

from schemas.errors import PoisonError
from schemas.events import make_event_id
from schemas.liveness import DeadLetterKind
from schemas.reading.envelopes import CE_PREFIX
from schemas.reading.fields import MAX_ID, MAX_TYPE, NOTHING
from schemas.reading.reader import EventReader, ReadEvent
from schemas.reading.times import EARLIEST, LATEST
from streams.profile.fold import Event

BACKFILL_HEADER = "freshet-backfill"

LOG_APPEND_TIME = 1  # timestamp type of a record that the broker stamped; 0 = the producer did
# A producer's clock is believed up to this far ahead of the host's. A host that is further off cannot even use TLS; a
# device that lives in 2099 must not put its users' newest event there, which would make all later ones late.
BELIEVED_AHEAD_S = 7 * 86_400.0

_Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)]


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event with its known fields only, in the form in which Freshet itself writes it."""

    user_id: _Identifier
    item_id: _Identifier
    event_time: Annotated[float, msgspec.Meta(ge=EARLIEST, lt=LATEST)]
    event_id: Annotated[str, msgspec.Meta(max_length=MAX_ID)] | None = None
    event_type: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TYPE)] = "interaction"
    schema_version: Annotated[int, msgspec.Meta(ge=1)] = 1


class Unusable(NamedTuple):
    """A record for the dead letters."""

    record: Any
    kind: DeadLetterKind
    reason: str


_decode_plain = msgspec.json.Decoder(_Plain).decode


@dataclass(frozen=True, slots=True)
class Part:
    """One of several events of a record, in the shape of a record that holds it alone."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    headers: Sequence[tuple[str, bytes]]
    key: bytes | None
    value: bytes


def decode_record(
    value: bytes | None, offset: int, caused_at: float, backfill: bool, reader: EventReader,
    headers: Sequence[tuple[str, bytes]] = (),
) -> tuple[list[Event], str]:
    """Return the events in a record's bytes, and why other elements of its array are none ("" = all are).

    Args:
        offset: offset of the record.
        caused_at: broker timestamp of the record, seconds.

    Raises:
        PoisonError: there is no event in the bytes; the error contains the reason.
    """
    if value and reader.plain and value.isascii() and b"\\" not in value and not (headers and _is_cloud_event(headers)):
        try:
            plain = _decode_plain(value)
        except (msgspec.MsgspecError, ValueError):
            plain = None
        if plain is not None and plain.user_id not in NOTHING and plain.item_id not in NOTHING:
            event_id = plain.event_id or make_event_id(
                plain.user_id, plain.item_id, plain.event_time, plain.event_type)
            return [Event(plain.user_id, plain.item_id, plain.event_time, plain.event_type, event_id, offset,
                          caused_at, backfill)], ""
    read, reason = reader.record(value, headers)
    # Events of one record share its offset. Those after the first would count as redelivered, so none of them has one.
    at = offset if len(read) == 1 else -1
    return [Event(*event, at, caused_at, backfill) for event in read], reason


def _is_cloud_event(headers: Sequence[tuple[str, bytes]]) -> bool:
    return any(name.startswith(CE_PREFIX) for name, _ in headers)


def decode_events(
    records: Iterable[Any], now: float, future_s: float, reader: EventReader,
) -> tuple[list[Event], list[Any], list[Unusable]]:
    """Return the events of a batch of records, their records, and the unusable records.

    Args:
        records: aiokafka records (topic, partition, offset, timestamp in ms and its type, headers, key, value).
        now: wall clock, seconds.
        future_s: events further ahead than this are unusable, because the user's later events would count as late.
            Ahead of the host's clock *and* of the record's timestamp (`time_of`): a host whose clock is slow would
            otherwise refuse every live event.
        reader: for records that are not plain.

    Returns:
        The second list is as long as the first; of a record with several events each has a `Part` of its own.
    """
    events: list[Event] = []
    usable: list[Any] = []
    unusable: list[Unusable] = []
    latest = now + future_s
    before, backfill, carried = (), False, ()
    for record in records:
        if (headers := record.headers) != before:  # most records of a batch have the same, or none
            before, backfill = headers, BACKFILL_HEADER in dict(headers)
            carried = headers if not backfill or len(headers) > 1 else ()  # that one says nothing to the reader
        try:
            found, reason = decode_record(
                record.value, record.offset, (record.timestamp or 0) / 1000.0, backfill, reader, carried)
        except PoisonError as error:
            unusable.append(Unusable(record, "unreadable", error.reason))
            continue
        if reason:
            unusable.append(Unusable(record, "unreadable", reason))
        for event in found:
            one = record if len(found) == 1 else _part(record, event)
            if event.event_time > latest:
                ahead = event.event_time - time_of(record, now)
                if ahead > future_s:
                    unusable.append(Unusable(one, "future", f"event_time: {ahead:.0f} s ahead of the clock"))
                    continue
            events.append(event)
            usable.append(one)
    return events, usable, unusable


def _part(record: Any, event: Event) -> Part:
    alone = ReadEvent(event.user_id, event.item_id, event.event_time, event.event_type, event.event_id)
    value = orjson.dumps(alone._asdict())
    return Part(record.topic, record.partition, record.offset, record.timestamp, record.headers, record.key, value)


def time_of(record: Any, now: float) -> float:
    """Return the time at which a record was written, as far as it can be known, but not before `now`, seconds.

    The broker's timestamp is taken as it is, a producer's up to `BELIEVED_AHEAD_S` ahead of `now`.
    """
    written = (record.timestamp or 0) / 1000.0
    if record.timestamp_type != LOG_APPEND_TIME:
        written = min(written, now + BELIEVED_AHEAD_S)
    return max(now, written)
