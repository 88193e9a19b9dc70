"""Writes to Kafka: each is confirmed by the broker or raises, so nothing is dropped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from pydantic import BaseModel

from schemas.codec import dead_letter, decode, encode
from schemas.errors import FreshetError
from schemas.messages import ERASED, DeadLetter
from schemas.settings import KafkaSettings
from schemas.topics import DEAD_LETTERS, Topic
from schemas.watch.tracing import Passed
from workers.kafka.configuration import producer

log = logging.getLogger(__name__)
_TRIES = 3  # of 30 s each, the delivery time-out
# What is left of a dead letter's record where the broker takes less than Kafka's default of 1 MiB, in base64.
_SHORT = 13_332


class Output(NamedTuple):
    """A message to write, None = a tombstone; the key decides its partition."""

    topic: Topic
    key: str
    message: BaseModel | None
    headers: tuple[tuple[str, bytes], ...] = ()


def tombstone(topic: Topic, user: str, erased: int = 0) -> Output:
    """Return the record that ends what the topic holds of a user.

    Args:
        erased: records of the user that its writer has removed elsewhere.
    """
    return Output(topic, user, None, ((ERASED, b"%d" % erased),))


class Rejected(NamedTuple):
    """A message that cannot be used: its record goes to the dead letters with this reason, the others go on."""

    message: BaseModel
    reason: str


class _Pending(NamedTuple):
    topic: str  # as the servers call it
    key: bytes | None
    value: bytes | None
    headers: Passed


class Outbox:
    """A producer whose `send` returns when every record of the call is confirmed."""

    def __init__(self, settings: KafkaSettings, role: str) -> None:
        self._producer = Producer(producer(settings), logger=logging.getLogger(f"{__name__}.kafka"))
        self._full = settings.full
        self._role = role
        self._buried: list[_Pending] = []

    def send(self, outputs: Sequence[Output], headers: Callable[[Output], Passed] = lambda _: []) -> int:
        """Write `outputs`, confirmed; return how many.

        Those that are larger than the broker takes are noted for the dead letters instead.

        Args:
            headers: returns the headers of an output.

        Raises:
            FreshetError: the broker did not take them in several tries.
        """
        pending = [_Pending(
            self._full(out.topic.name), out.key.encode(), None if out.message is None else encode(out.message),
            [*headers(out), *out.headers]) for out in outputs]
        refused = self._deliver(pending)
        for topic, key, value, _ in refused:
            reason = f"cannot be sent: {len(value or b'')} bytes to {topic}: larger than the broker takes"
            log.warning("%s: dead letter: %s", self._role, reason)
            self._note(dead_letter(topic, -1, -1, reason, value=value, key=key, role=self._role, failed_at=time.time()))
        return len(outputs) - len(refused)

    def bury(self, source: Message, reason: str) -> None:
        """Note a record for the dead letters; `flush` writes them."""
        self._note(dead_letter(
            source.topic(), source.partition(), source.offset(), reason, value=source.value(), key=source.key(),
            role=self._role, failed_at=time.time(), headers=source.headers() or ()))

    def _note(self, letter: DeadLetter) -> None:
        self._buried.append(_Pending(self._full(DEAD_LETTERS.name), letter.topic.encode(), encode(letter), []))

    def flush(self) -> None:
        """Write the dead letters noted so far, confirmed.

        Raises:
            FreshetError: as `send`.
        """
        buried, self._buried = self._buried, []
        refused = self._deliver(buried)
        if self._deliver([letter._replace(value=_cut(letter.value or b"")) for letter in refused]):
            raise FreshetError(
                f"{self._role}: the broker does not take a dead letter of some 60 kB; set max.message.bytes of "
                f"{self._full(DEAD_LETTERS.name)} to 1048588 (Kafka's default) or more")

    def close(self) -> None:
        """Close the producer; its records are confirmed already."""
        self._producer.flush(1.0)

    def _deliver(self, pending: Sequence[_Pending]) -> list[_Pending]:
        """Write records, confirmed; return those that are larger than the broker takes."""
        refused: list[_Pending] = []
        for attempt in range(_TRIES):
            failed = self._write(pending)
            # The broker refuses whole batches, so each record of such a batch is sent again by itself.
            alone = [one for record, error in failed if _too_large(error) for one in self._write([record])]
            refused += [record for record, error in alone if _too_large(error)]
            failed = [(record, error) for record, error in (*failed, *alone) if not _too_large(error)]
            if not failed:
                return refused
            log.warning("%s: %d of %d records not delivered (%s), try %d of %d", self._role, len(failed), len(pending),
                        failed[0][1].str(), attempt + 1, _TRIES)
            pending = [record for record, _ in failed]
        raise FreshetError(
            f"{self._role}: the broker does not take {len(failed)} records for {failed[0][0].topic} "
            f"({failed[0][1].str()}); nothing is committed, so they will be produced again")

    def _write(self, records: Sequence[_Pending]) -> list[tuple[_Pending, KafkaError]]:
        """Write records once and wait; return those that were not taken, each with the error."""
        failed: list[tuple[_Pending, KafkaError]] = []
        for record in records:
            self._produce(record, failed)
        self._producer.flush()  # bounded by the delivery time-out
        return failed

    def _produce(self, record: _Pending, failed: list[tuple[_Pending, KafkaError]]) -> None:
        def settle(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append((record, error))

        while True:
            try:
                self._producer.produce(
                    record.topic, record.value, record.key, on_delivery=settle, headers=record.headers or None)
                return
            except BufferError:
                self._producer.poll(0.1)  # the client's queue is full: wait for deliveries
            except KafkaException as error:
                cause = error.args[0]
                if not _too_large(cause):  # an idempotent producer that lost its order cannot be used any more
                    raise FreshetError(f"{self._role}: the Kafka producer cannot go on: {cause.str()}") from error
                failed.append((record, cause))
                return


def _too_large(error: KafkaError) -> bool:
    return error.code() == KafkaError.MSG_SIZE_TOO_LARGE


def _cut(letter: bytes) -> bytes:
    """Return a dead letter with less of its record's value."""
    long = decode(DeadLetter, letter)
    return encode(long.model_copy(update={
        "value": long.value[:_SHORT], "reason": f"{long.reason} (cut to what the broker takes)"}))
