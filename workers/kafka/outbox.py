"""Writes to Kafka: each is confirmed by the broker or raises, so nothing is dropped."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, Message, Producer
from pydantic import BaseModel

from schemas.codec import dead_letter, encode
from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.topics import DEAD_LETTERS, Topic
from workers.kafka.configuration import producer

log = logging.getLogger(__name__)
_TRIES = 3  # of 30 s each, the delivery time-out


class Output(NamedTuple):
    """A message to write; the key decides its partition."""

    topic: Topic
    key: str
    message: BaseModel


class Rejected(NamedTuple):
    """A message that cannot be used: its record goes to the dead letters with this reason, the others go on."""

    message: BaseModel
    reason: str


class _Pending(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes


class Outbox:
    """A producer whose `send` returns when every record of the call is confirmed."""

    def __init__(self, settings: KafkaSettings, role: str) -> None:
        self._producer = Producer(producer(settings), logger=logging.getLogger(f"{__name__}.kafka"))
        self._role = role
        self._buried: list[_Pending] = []

    def send(self, outputs: Sequence[Output]) -> int:
        """Write `outputs`, confirmed; return how many.

        Raises:
            FreshetError: the broker did not take them in several tries.
        """
        self._deliver([_Pending(out.topic.name, out.key.encode(), encode(out.message)) for out in outputs])
        return len(outputs)

    def bury(self, source: Message, reason: str) -> None:
        """Note a record for the dead letters; `flush` writes them."""
        letter = dead_letter(
            source.topic(), source.partition(), source.offset(), reason, value=source.value(), key=source.key(),
            role=self._role, failed_at=time.time())
        self._buried.append(_Pending(DEAD_LETTERS.name, source.topic().encode(), encode(letter)))

    def flush(self) -> None:
        """Write the dead letters noted so far, confirmed.

        Raises:
            FreshetError: as `send`.
        """
        buried, self._buried = self._buried, []
        self._deliver(buried)

    def close(self) -> None:
        """Close the producer; its records are confirmed already."""
        self._producer.flush(1.0)

    def _deliver(self, pending: Sequence[_Pending]) -> None:
        for attempt in range(_TRIES):
            failed: list[tuple[_Pending, str]] = []

            def settle(error: Any, _: Any, record: _Pending, failed: list[tuple[_Pending, str]] = failed) -> None:
                if error is not None:
                    failed.append((record, error.str()))

            for record in pending:
                self._produce(record, settle)
            self._producer.flush()  # bounded by the delivery time-out
            if not failed:
                return
            log.warning("%s: %d of %d records not delivered (%s), try %d of %d", self._role, len(failed), len(pending),
                        failed[0][1], attempt + 1, _TRIES)
            pending = [record for record, _ in failed]
        raise FreshetError(
            f"{self._role}: the broker does not take {len(failed)} records for {failed[0][0].topic} "
            f"({failed[0][1]}); nothing is committed, so they will be produced again")

    def _produce(self, record: _Pending, settle: Any) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic, record.value, record.key,
                    on_delivery=lambda error, message, record=record: settle(error, message, record))
                return
            except BufferError:
                self._producer.poll(0.1)  # the client's queue is full: wait for deliveries
            except KafkaException as error:  # an idempotent producer that lost its order cannot be used any more
                raise FreshetError(f"{self._role}: the Kafka producer cannot go on: {error.args[0].str()}") from error
