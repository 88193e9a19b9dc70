"""The changelog of user states: one transactional producer per partition, so that only its owner can write.

A process that was paused or cut off for longer than the session time-out does not know yet that its partitions belong
to others. What it had in hand it would still write, and recovery takes the *last* record of a user, not the newest
state: every event since would be lost. Comparing states at recovery does not help either, because compaction removes
the newer record first. So only the broker can keep a former owner out. Each partition of the changelog has one
transactional id. To take a partition over, its new owner registers that id: the broker aborts what the former owner has
not committed and refuses what it sends from then on. Only then does the new owner look how far it has to read.

librdkafka's transactions, not aiokafka's: those fail on the embedded broker, and end the producer on any surprise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiokafka import TopicPartition
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from faust.types import TP

from schemas.errors import FreshetError
from streams.service.outbox import RETRY_S, Pair

log = logging.getLogger("freshet.streams")

T = TypeVar("T")

# librdkafka's transaction calls block. Between two of them a thread looks whether the partition was lost.
CALL_S = 2.0
# Calls that wait for the broker at the same time. Each partition has one at most.
THREADS = 16
# Partitions lost without a rebalance, one after the other with nothing written in between: not bad luck any more.
MOST_LOSSES = 5
# The last record is looked for in this many offsets before the end, then in so many times more.
FIRST_STEP = 8
GROWTH = 16
POLL_MS = 50
# A fetch this long after a seek has answered it: the broker holds an empty one for 0.5 s.
ANSWERED_MS = 1500


class LostError(Exception):
    """The partition is another process's now, or will be assigned again: what was prepared for it must be dropped."""


class PartitionWriter:
    """Writes one partition of the changelog, from its assignment to its loss.

    Args:
        config: librdkafka's, without a transactional id.
        transactional_id: the partition's; the same in every process.
        topic: the changelog.
        threads: where the blocking calls run.
    """

    def __init__(
        self, config: Mapping[str, Any], transactional_id: str, topic: str, partition: int, threads: ThreadPoolExecutor,
    ) -> None:
        self._config = config
        self._id = transactional_id
        self._topic = topic
        self.partition = partition
        self._threads = threads
        self._producer: Producer | None = None
        self._offset = -1  # of the last record it took
        self.lost = False
        self.fenced = False  # lost because the broker said so
        self.written = 0  # transactions

    def check(self) -> None:
        """Raise LostError if the partition was lost."""
        if self.lost:
            raise LostError(f"{self._topic}[{self.partition}] was lost")

    async def take_over(self) -> None:
        """Shut former owners out and abort what they have not committed.

        Raises:
            FreshetError: the broker does not allow it.
        """
        try:
            await self._in_thread(self._register)
        except KafkaException as error:
            if not self.lost:
                raise FreshetError(
                    f"the broker refuses the transactional id {self._id}: {error.args[0].str()}; allow DESCRIBE and "
                    "WRITE on it, see docs/operations.md") from error

    async def write(self, pairs: Sequence[Pair]) -> int:
        """Write states in one transaction; wait and try again for as long as the broker does not answer.

        Returns:
            Offset of the last one.

        Raises:
            LostError: the partition is not this process's any more; nothing was written.
            FreshetError: a state is larger than the broker takes.
        """
        try:
            while True:
                self.check()
                try:
                    return await self._in_thread(self._transaction, pairs)
                except KafkaException as error:
                    await self._recover(error.args[0])
        except asyncio.CancelledError:
            self.lost = True  # ends the loops in the thread
            raise

    async def _recover(self, error: KafkaError) -> None:
        """Get ready for another try, or raise."""
        if error.fatal():
            self.lost = self.fenced = True
            raise LostError(f"{self._topic}[{self.partition}] has another owner: {error.str()}")
        self.check()
        log.warning("cannot write to %s[%d]: %s; trying again", self._topic, self.partition, error.str())
        try:
            await self._in_thread(self._abort)
        except KafkaException as failure:
            if failure.args[0].fatal():
                await self._recover(failure.args[0])
            raise
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise FreshetError(f"a state is larger than the broker takes in {self._topic}: {error.str()}")
        await asyncio.sleep(RETRY_S)

    def close(self) -> None:
        """Disconnect; what is not committed will be aborted by the next owner."""
        self.lost = True
        if self._producer is not None:
            self._producer.purge()
            self._producer = None

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    def _register(self) -> None:
        self._producer = Producer({**self._config, "transactional.id": self._id})
        self._until_done(self._producer.init_transactions)

    def _transaction(self, pairs: Sequence[Pair]) -> int:
        producer = self._producer
        assert producer is not None  # noqa: S101 - for the type checker
        self._offset = -1
        producer.begin_transaction()
        for key, value, _ in pairs[:-1]:
            producer.produce(self._topic, value, key, partition=self.partition)
        key, value, _ = pairs[-1]  # only this one is reported: a report copies the record
        producer.produce(self._topic, value, key, partition=self.partition, on_delivery=self._taken)
        self._until_done(producer.commit_transaction)
        self.written += 1
        return self._offset

    def _abort(self) -> None:
        assert self._producer is not None  # noqa: S101 - for the type checker
        self._until_done(self._producer.abort_transaction)

    def _taken(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._offset = message.offset() or 0

    def _until_done(self, call: Callable[[float], None]) -> None:
        """Repeat a call that timed out; the client goes on with it in the background."""
        while True:
            try:
                return call(CALL_S)
            except KafkaException as error:
                if not error.args[0].retriable() or self.lost:
                    raise


class Changelog:
    """The writers of the partitions that this process owns.

    Args:
        config: librdkafka's, for a producer.
        name: of the transactional ids, before the partition's number.
        topic: the changelog.
    """

    def __init__(self, config: Mapping[str, Any], name: str, topic: str) -> None:
        self._config = {
            "enable.idempotence": True,
            # A batch's states are written at once and then waited for. Larger batches save CPU time: 500 states of
            # 8 kB take 12 ms with 900 kB, 30 ms with librdkafka's 16 kB.
            "batch.size": 900_000,
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
            **config,
        }
        self._name = name
        self._topic = topic
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="changelog")
        self._writers: dict[int, PartitionWriter] = {}
        self._taking: asyncio.Future[None] | None = None
        self._losses = 0

    def writer(self, partition: int) -> PartitionWriter:
        """Return the partition's writer.

        Raises:
            LostError: it was lost, and is to be assigned again.
        """
        writer = self._writers.get(partition)
        if writer is None or writer.lost:
            raise LostError(f"{self._topic}[{partition}] was lost")
        return writer

    async def take_over(self, partitions: Iterable[int]) -> None:
        """Become the only one who can write to `partitions`, and to no others.

        Raises:
            FreshetError: the broker does not allow it.
        """
        self.lose()
        # A call that is cancelled goes on in its thread, and would shut out the writer of the call after it.
        self._taking = asyncio.ensure_future(self._take_over(sorted(partitions), self._taking))
        await asyncio.shield(self._taking)

    async def _take_over(self, partitions: list[int], before: asyncio.Future[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self.lose()
        self._writers = {partition: PartitionWriter(
            self._config, f"{self._name}-{partition}", self._topic, partition, self._threads)
            for partition in partitions}
        await asyncio.gather(*(writer.take_over() for writer in self._writers.values()))

    def lose(self) -> None:
        """Write nothing more: the partitions are changing hands."""
        writers = self._writers.values()
        if any(writer.written for writer in writers):
            self._losses = 0
        self._losses += any(writer.fenced for writer in writers)
        for writer in writers:
            writer.lost = True
            self._threads.submit(writer.close)
        self._writers = {}

    @property
    def lost_again_and_again(self) -> bool:
        """Whether something is wrong that another rebalance will not change."""
        return self._losses >= MOST_LOSSES


async def read_ends(probe: Any, listed: Mapping[TP, int], log_ends: Mapping[TP, int]) -> dict[TP, int]:
    """Return per partition the offset after the last record that is committed; 0 for a partition that has none.

    Faust reads until the offset of a record is the one before the end. But the end of a log is not the end of its
    records: a transaction's marker takes an offset, the records of an aborted one are skipped, and compaction removes
    records. Without this, recovery would wait for ever.

    Args:
        probe: a started aiokafka consumer that reads what is committed, the partitions of `log_ends` assigned to it.
        listed: first offset per partition.
        log_ends: offset after the last one per partition.
    """
    found: dict[TP, int] = {}
    step = FIRST_STEP
    waiting = {tp for tp, end in log_ends.items() if end > listed[tp]}
    while waiting:
        for tp in waiting:
            probe.seek(tp, max(listed[tp], log_ends[tp] - step))
        found |= await _last_records(probe, waiting, log_ends)
        waiting = {tp for tp in waiting - found.keys() if log_ends[tp] - step > listed[tp]}
        step *= GROWTH
    return {tp: found.get(tp, 0) for tp in log_ends}


async def _last_records(probe: Any, partitions: Collection[TP], ends: Mapping[TP, int]) -> dict[TP, int]:
    """Read up to `ends` and return the offset after the last record of the partitions that had one."""
    found: dict[TP, int] = {}
    moved = dict.fromkeys(partitions, (-1, _now_ms()))  # position, since when
    reading = set(partitions)
    while reading:
        wanted = [TopicPartition(*tp) for tp in reading]
        for tp, records in (await probe.getmany(*wanted, timeout_ms=POLL_MS)).items():
            if records:
                found[TP(*tp)] = records[-1].offset + 1
        for tp in list(reading):
            position, since = await probe.position(tp), moved[tp][1]
            if position != moved[tp][0]:
                moved[tp] = position, _now_ms()
            # Where compaction left nothing before the end, the position stays where it is.
            elif (probe.last_poll_timestamp(tp) or 0) > since + ANSWERED_MS:
                reading.remove(tp)
            if position >= ends[tp]:
                reading.discard(tp)
    return found


def _now_ms() -> int:
    return int(time.time() * 1000)  # as aiokafka stamps answers
