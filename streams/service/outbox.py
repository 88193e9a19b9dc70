"""Sending: a batch's messages go out as whole Kafka batches, and nothing counts as sent until the broker says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordTooLargeError
from aiokafka.partitioner import murmur2

from schemas.codec import dead_letter, encode
from schemas.topics import DEAD_LETTERS

log = logging.getLogger("freshet.streams")

RETRY_S = 1.0
Pair = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]  # key, value, headers


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Java, kafka-python and librdkafka's `murmur2` give a key.

    confluent-kafka does not offer its hash to Python; aiokafka is there with Faust.
    """
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


class FaustOutbox:
    """Sends messages over aiokafka producers' batch interface.

    One future per batch instead of one per message: 3 µs a message instead of 25.
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    async def send(self, topic: str, partition: int, pairs: Sequence[Pair]) -> int:
        """Send messages to one partition in order and wait until they are acknowledged.

        Waits and tries again for as long as the broker does not take them; a retry can repeat messages.

        Returns:
            Offset of the last one, −1 for no messages.

        Raises:
            MessageSizeTooLargeError: one message is larger than the broker takes.
        """
        while True:  # tenacity's wrapper costs 74 µs a call, as much as 25 messages
            try:
                return await self._send_once(topic, partition, pairs)
            except (MessageSizeTooLargeError, RecordTooLargeError):
                raise
            except KafkaError as error:
                log.warning("cannot write to %s[%d]: %r; trying again", topic, partition, error)
                await asyncio.sleep(RETRY_S)

    async def _send_once(self, topic: str, partition: int, pairs: Sequence[Pair]) -> int:
        futures = []
        size = start = 0
        while start < len(pairs):
            batch = self._producer.create_batch()
            size = 0
            for key, value, headers in pairs[start:]:
                if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                    break
                size += 1
            if size == 0:
                raise MessageSizeTooLargeError(f"a message to {topic} is larger than a batch may be")
            batch.close()
            futures.append(await self._producer.send_batch(batch, topic, partition=partition))
            start += size
        sent = await asyncio.gather(*futures)
        return sent[-1].offset + size - 1 if sent else -1

    async def send_dead_letters(self, records: Iterable[tuple[Any, str]], now: float) -> None:
        """Send unusable records with their reasons to the dead letters and wait until they are acknowledged."""
        pairs: list[Pair] = []
        for record, reason in records:
            letter = dead_letter(record.topic, record.partition, record.offset, reason, value=record.value,
                                 key=record.key, role="streams", failed_at=now)
            pairs.append((record.topic.encode(), encode(letter), []))
        await self.send(DEAD_LETTERS.name, 0, pairs)


def wire(message: Any) -> bytes:
    """Return a message as JSON bytes; `schemas.codec.encode` without its copy of every field."""
    return orjson.dumps(message.__dict__, default=_fields)


def _fields(value: Any) -> Any:
    return value.__dict__
