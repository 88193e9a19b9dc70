"""Reads behaviour events from files and sends them to the topic, for `freshet produce` and the demo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from confluent_kafka import KafkaError, Message, Producer

from models.data.account import Account
from models.data.loading import events_of
from models.data.opening import text_lines
from models.data.tables import read_lines, read_table
from schemas.codec import encode
from schemas.errors import FreshetError, StalledError
from schemas.events import BehaviourEvent
from schemas.liveness import Stall
from schemas.reading.fields import NAMES, plain_name
from schemas.settings import EventSettings, KafkaSettings
from schemas.topics import BEHAVIOUR_EVENTS, Topic
from workers.kafka.configuration import producer

_READ = {name for names in NAMES.values() for name in names} | set(map(plain_name, BehaviourEvent.model_fields))
BACKFILL = "freshet-backfill"  # header: only update states, do not recommend or refresh

Delivered = Callable[[KafkaError | None, Message], None]


def read_file(
    file: str, account: Account, settings: EventSettings, stdin: IO[bytes] | None = None,
) -> Iterator[BehaviourEvent]:
    """Yield the events of a file, in any format that `models.data.tables` reads. Other fields pass through.

    Args:
        file: its path, "-" for standard input.
        account: counts what is left out.
        stdin: standard input.

    Raises:
        DataError: the file is missing, empty or unreadable, or it has no column for a user, an item or a time.
    """
    if file == "-" and stdin is not None:
        rows = read_lines(text_lines(account.name, stdin, settings.encoding), account, columns=settings.column_names)
    else:
        rows = read_table(Path(file), account, encoding=settings.encoding, columns=settings.column_names)
    for _, row, event in events_of(rows, account, settings):
        account.used += 1
        extra = {name: value for name, value in row.items()
                 if plain_name(name) not in _READ and name not in settings.fields.values()}
        yield BehaviourEvent(**{**extra, **event._asdict()})


class EventProducer:
    """Sends events keyed by user, or other records by `record`, at least once.

    Args:
        settings: the broker.
        backfill: mark the records as history: they update states, but cause no recommendations.
        stall_s: raise StalledError after this many seconds without a delivery.
    """

    def __init__(self, settings: KafkaSettings, *, backfill: bool = False, stall_s: float = 60.0) -> None:
        # Delivery reports contain the failures; a log line per lost connection adds nothing.
        self._producer = Producer(producer(settings, log_level=2))
        self._headers = [(BACKFILL, b"1")] if backfill else None
        self._full = settings.full
        self._stall_s = stall_s
        self._error: KafkaError | None = None
        self.delivered = 0

    def send(self, event: BehaviourEvent, on_delivery: Delivered | None = None) -> None:
        """Queue one event, as `record`."""
        self.record(BEHAVIOUR_EVENTS, event.user_id, encode(event), on_delivery)

    def record(self, topic: Topic, key: str, value: bytes | None, on_delivery: Delivered | None = None) -> None:
        """Queue one record; None = a tombstone. Waits if the client's own queue is full.

        Raises:
            FreshetError: an earlier record could not be delivered.
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
                    self._full(topic.name), key=key.encode(), value=value, headers=self._headers, on_delivery=_done)
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
            FreshetError: a record could not be delivered.
        """
        stall = Stall(self._stall_s)
        while left := self._producer.flush(1.0):
            if stall.reached(time.monotonic(), left, True):
                raise StalledError(
                    f"producing: {left} records are waiting and none was delivered for {self._stall_s:.0f} s")
        self._raise_failed()

    def _raise_failed(self) -> None:
        if self._error is not None:
            raise FreshetError(f"a record could not be delivered: {self._error.str()}")


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


