"""Reads behaviour events from files and sends them to the topic, for `freshet produce` and the demo."""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TextIO

import orjson
from confluent_kafka import KafkaError, Message, Producer
from pydantic import ValidationError

from schemas.codec import encode
from schemas.errors import DataError, FreshetError, StalledError
from schemas.events import BehaviourEvent, describe
from schemas.liveness import Stall
from schemas.settings import KafkaSettings
from schemas.topics import BEHAVIOUR_EVENTS
from workers.kafka.configuration import producer

BACKFILL = "freshet-backfill"  # header: only update states, do not recommend or refresh

Delivered = Callable[[KafkaError | None, Message], None]


@dataclass
class RejectedEvent:
    """Lines that are not valid events."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, line: int, reason: str) -> None:
        """Count a line. The first five are stored to be shown."""
        self.count += 1
        if len(self.first) < 5:
            self.first.append(f"line {line}: {reason}")


def read_events(source: TextIO, rejected: RejectedEvent) -> Iterator[BehaviourEvent]:
    """Yield the events of a CSV (with a header) or JSON-lines text. A text that starts with `{` is JSON lines.

    A CSV's `timestamp` column is used as `event_time`. Invalid lines are counted in `rejected`.

    Raises:
        DataError: the text is empty, or it is a CSV without the required columns.
    """
    first = next((line for line in source if line.strip()), None)
    if first is None:
        raise DataError("there is nothing to produce: the input is empty")
    rows = _json_rows if first.lstrip().startswith("{") else _csv_rows
    for number, row in rows(chain([first], source), rejected):
        try:
            yield BehaviourEvent.model_validate(row)
        except ValidationError as error:
            rejected.add(number, describe(error))


def _json_rows(lines: Iterable[str], rejected: RejectedEvent) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                rejected.add(number, f"not JSON: {error}")


def _csv_rows(lines: Iterable[str], _: RejectedEvent) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(lines)
    columns = set(reader.fieldnames or ())
    missing = {"user_id", "item_id"} - columns
    if not {"timestamp", "event_time"} & columns:
        missing.add("timestamp")
    if missing:
        raise DataError(f"the CSV has no column {', '.join(sorted(missing))}; it has {', '.join(sorted(columns))}")
    for number, row in enumerate(reader, 2):
        fields = {key: value for key, value in row.items() if key and value not in (None, "")}
        if "event_time" not in fields and "timestamp" in fields:
            fields["event_time"] = fields.pop("timestamp")
        with contextlib.suppress(KeyError, ValueError):  # ISO 8601 text, or missing: the model validates it
            fields["event_time"] = float(fields["event_time"])
        yield number, fields


class EventProducer:
    """Sends events, keyed by user, at least once.

    Args:
        settings: the broker.
        backfill: mark the records as history: they update states, but cause no recommendations.
        stall_s: raise StalledError after this many seconds without a delivery.
    """

    def __init__(self, settings: KafkaSettings, *, backfill: bool = False, stall_s: float = 60.0) -> None:
        # Delivery reports contain the failures; a log line per lost connection adds nothing.
        self._producer = Producer(producer(settings, log_level=2))
        self._headers = [(BACKFILL, b"1")] if backfill else None
        self._stall_s = stall_s
        self._error: KafkaError | None = None
        self.delivered = 0

    def send(self, event: BehaviourEvent, on_delivery: Delivered | None = None) -> None:
        """Queue one event. Waits if the client's own queue is full.

        Raises:
            FreshetError: an earlier event could not be delivered.
            StalledError: the queue stays full.
        """
        self._raise_failed()

        def _done(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self.delivered += 1
            else:
                self._error = error
            if on_delivery is not None:
                on_delivery(error, message)

        stall = Stall(self._stall_s)
        while True:
            try:
                self._producer.produce(
                    BEHAVIOUR_EVENTS.name, key=event.user_id.encode(), value=encode(event), headers=self._headers,
                    on_delivery=_done)
                break
            except BufferError:
                if stall.reached(time.monotonic(), self.delivered, True):
                    raise StalledError(f"producing: nothing was delivered for {self._stall_s:.0f} s") from None
                self._producer.poll(0.1)
        self._producer.poll(0)

    def poll(self, seconds: float = 0.0) -> None:
        """Serve delivery reports."""
        self._producer.poll(seconds)
        self._raise_failed()

    def flush(self) -> None:
        """Return once everything queued is delivered.

        Raises:
            StalledError: nothing was delivered for `stall_s`.
            FreshetError: an event could not be delivered.
        """
        stall = Stall(self._stall_s)
        while left := self._producer.flush(1.0):
            if stall.reached(time.monotonic(), left, True):
                raise StalledError(
                    f"producing: {left} events are waiting and none was delivered for {self._stall_s:.0f} s")
        self._raise_failed()

    def _raise_failed(self) -> None:
        if self._error is not None:
            raise FreshetError(f"an event could not be delivered: {self._error.str()}")


class Pacer:
    """Maps event time to the clock: `due(event_time)` returns when to send an event at `speed` × real time.

    Args:
        speed: seconds of event time per second; 0 = as fast as possible.
        started: monotonic time at which the first event is due, seconds.
    """

    def __init__(self, speed: float, started: float) -> None:
        self.speed = speed
        self._started = started
        self._first: float | None = None

    def due(self, event_time: float) -> float:
        """Return the monotonic time at which the event is due."""
        if self._first is None:
            self._first = event_time
        if self.speed <= 0:
            return self._started
        return self._started + max(0.0, event_time - self._first) / self.speed


