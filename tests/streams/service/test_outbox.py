from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from schemas.codec import decode
from schemas.errors import FreshetError
from schemas.messages import DeadLetter
from streams.profile.decoding import Unusable
from streams.service.changelog import LostError
from streams.service.outbox import LARGEST, FaustOutbox, Pair, partition_of


@given(st.binary(max_size=40), st.integers(1, 64))
def test_a_key_is_on_the_partition_where_kafka_python_puts_it(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


class Producer:
    """aiokafka's batch interface over a broker that takes batches of up to `limit` bytes, on the topic `limited`.

    It answers with the errors it was given, then takes what comes. `round_trips` counts its answers.
    """

    def __init__(self, *errors: KafkaError, limit: int = 1 << 60, limited: str = "") -> None:
        self.errors = list(errors)
        self.limit = limit
        self.limited = limited
        self.round_trips = 0
        self.sent: list[tuple[str, int, int]] = []
        self.taken: list[bytes] = []

    def create_batch(self) -> Any:
        return BatchBuilder(900_000, 0)

    async def send_batch(self, batch: Any, topic: str, partition: int) -> asyncio.Future[Any]:
        self.round_trips += 1
        if self.errors:
            raise self.errors.pop(0)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        records = [record.value for record in DefaultRecordBatch(batch._build())]
        if batch.size() > self.limit and self.limited in ("", topic):
            future.set_exception(MessageSizeTooLargeError("too large"))
            return future
        self.sent.append((topic, partition, len(records)))
        future.set_result(SimpleNamespace(offset=40 + len(self.taken)))
        self.taken += records
        return future


def pairs(*values: bytes) -> list[Pair]:
    return [(b"k", value, []) for value in values]


def test_a_broker_that_is_away_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    producer = Producer(KafkaConnectionError("away"))
    with caplog.at_level(logging.WARNING, "freshet.streams"):
        last = asyncio.run(FaustOutbox(producer).send("t", 3, pairs(b"1", b"2")))
    assert (last, producer.sent) == (41, [("t", 3, 2)])
    assert "cannot write to t[3]" in caplog.text


def test_messages_of_a_lost_partition_are_not_tried_again() -> None:
    producer, checks = Producer(KafkaConnectionError("away")), []

    def check() -> None:
        checks.append(len(producer.taken))
        if len(checks) > 1:
            raise LostError

    with pytest.raises(LostError):
        asyncio.run(FaustOutbox(producer).send("t", 3, pairs(b"1"), check=check))
    assert (producer.taken, checks) == ([], [0, 0])


def test_only_what_the_broker_refuses_is_left_out() -> None:
    producer, refused = Producer(limit=5_000), []
    small = [b"%d" % n for n in range(40)]
    values = [*small[:7], b"x" * 6_000, *small[7:], b"y" * 2_000_000]
    last = asyncio.run(FaustOutbox(producer).send("t", 3, pairs(*values), refused))
    assert sorted(producer.taken) == sorted(small)
    assert [value for _, value, _ in refused] == [b"y" * 2_000_000, b"x" * 6_000]
    assert last == 40 + len(small) - 1


def test_a_message_no_broker_can_be_asked_about_is_not_sent() -> None:
    """A request beyond the broker's socket limit ends in a closed connection, which would be tried for ever."""
    producer, refused = Producer(), []
    asyncio.run(FaustOutbox(producer).send("t", 3, pairs(b"x" * (LARGEST + 1), b"1"), refused))
    assert (producer.taken, len(refused), producer.round_trips) == ([b"1"], 1, 1)


def test_a_state_that_is_too_large_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(FreshetError, match=r"6001 bytes to changelog; set max.message.bytes"):
        asyncio.run(FaustOutbox(Producer(limit=5_000)).send("changelog", 3, pairs(b"x" * 6_000)))


def record(offset: int, value: bytes) -> Any:
    return SimpleNamespace(topic="behaviour-events", partition=1, offset=offset, value=value, key=b"k", headers=())


def test_letters_go_out_in_whole_batches_and_every_one_is_progress() -> None:
    """One at a time they went out at 330/s with a broker 2 ms away: a good event behind 80,000 waited 4 minutes."""
    producer, moves = Producer(), []
    bad = [Unusable(record(n, b"{"), "unreadable", "Invalid JSON: EOF while parsing an object") for n in range(80_000)]
    asyncio.run(FaustOutbox(producer, lambda: moves.append(1)).send_dead_letters(bad, 1.0))
    assert len(producer.taken) == 80_000
    assert producer.round_trips < 30
    assert len(moves) == producer.round_trips


def test_a_letter_that_a_small_broker_refuses_is_cut_further() -> None:
    producer = Producer(limit=100_000)
    bad = [Unusable(record(1, b"x" * 800_000), "unreadable", "no"), Unusable(record(2, b"{"), "unreadable", "no")]
    asyncio.run(FaustOutbox(producer).send_dead_letters(bad, 1.0))
    letters = [decode(DeadLetter, value) for value in producer.taken]
    assert sorted(letter.offset for letter in letters) == [1, 2]
    assert "first 10000 of 800000 bytes kept" in next(letter.reason for letter in letters if letter.offset == 1)


def test_a_waiting_send_ends_at_once_when_cancelled() -> None:
    async def scenario() -> None:
        task = asyncio.create_task(
            FaustOutbox(Producer(*[KafkaConnectionError("away")] * 9)).send("t", 0, pairs(b"1")))
        await asyncio.sleep(0.05)
        task.cancel()
        async with asyncio.timeout(0.5):
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())
