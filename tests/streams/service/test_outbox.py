from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError, RecordTooLargeError
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from streams.service.outbox import FaustOutbox, partition_of


@given(st.binary(max_size=40), st.integers(1, 64))
def test_a_key_is_on_the_partition_where_kafka_python_puts_it(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


class Producer:
    """aiokafka's batch interface: answers with the errors it was given, then with offset 40."""

    def __init__(self, *errors: KafkaError) -> None:
        self.errors = list(errors)
        self.sent: list[tuple[str, int, int]] = []

    def create_batch(self) -> Any:
        records: list[bytes] = []
        return SimpleNamespace(records=records, close=lambda: None, append=lambda **fields: not records.append(
            fields["value"]))

    async def send_batch(self, batch: Any, topic: str, partition: int) -> asyncio.Future[Any]:
        if self.errors:
            raise self.errors.pop(0)
        self.sent.append((topic, partition, len(batch.records)))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(SimpleNamespace(offset=40))
        return future


def test_a_broker_that_is_away_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    producer = Producer(KafkaConnectionError("away"))
    with caplog.at_level(logging.WARNING, "freshet.streams"):
        last = asyncio.run(FaustOutbox(producer).send("t", 3, [(b"k", b"1", []), (b"k", b"2", [])]))
    assert (last, producer.sent) == (41, [("t", 3, 2)])
    assert "cannot write to t[3]" in caplog.text


@pytest.mark.parametrize("error", [MessageSizeTooLargeError, RecordTooLargeError])
def test_a_message_that_is_too_large_is_not_tried_again(error: type[KafkaError]) -> None:
    producer = Producer(error("too large"))
    with pytest.raises(error):
        asyncio.run(FaustOutbox(producer).send("t", 3, [(b"k", b"1", [])]))
    assert producer.sent == []


def test_a_waiting_send_ends_at_once_when_cancelled() -> None:
    async def scenario() -> None:
        task = asyncio.create_task(FaustOutbox(Producer(*[KafkaConnectionError("away")] * 9)).send("t", 0, [
            (b"k", b"1", [])]))
        await asyncio.sleep(0.05)
        task.cancel()
        async with asyncio.timeout(0.5):
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())
