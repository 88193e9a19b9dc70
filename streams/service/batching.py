"""A Kafka transport for Faust that hands an agent whole batches instead of single events.

Faust spends about 70 µs on every event it delivers, which caps an agent that does nothing at 15,000 events/s. Here
each partition's fetched records become *one* message. Its value is the list of records and its offset is the last
one's, so that cost is paid once per fetch. A batch is therefore the unit of acknowledgement: its offsets are committed
together once everything it caused is durable.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiokafka.client
from aiokafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, ConsumerMessage, Message

from schemas.watch.instruments import histogram
from streams.service.changelog import read_ends
from streams.service.origin import lower_offsets
from streams.service.seeking import Seeker

# A broker holds a fetch open for this long while the partitions asked for have nothing new. aiokafka has one fetch at a
# time under way and leaves out partitions whose last records are not taken yet. Those would wait all that time for
# silent neighbours (with Faust's 1.5 s: a 0.8 s standstill near the end of every backlog).
FETCH_WAIT_MS = 50
# aiokafka's wait for records ends early only for newly *fetched* ones, not for those of a partition that was held back
# for a full buffer and is wanted again: while any is held back, ask this often (else: standstills of Faust's 5 s).
HELD_BACK_S = 0.01
READ_COMMITTED = "read_committed"
_COMMIT = histogram("freshet_stage_seconds").labels("streams", "commit")


@dataclass(slots=True)
class Batch:
    """Consecutive records of one partition in the shape of a single aiokafka record; `value` is the list of them."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    timestamp_type: int | None
    value: list[Any]
    key: bytes | None = None
    headers: tuple[()] = ()
    checksum: int | None = None
    serialized_key_size: int = 0
    serialized_value_size: int = 0


def fold_records(records: Mapping[TP, list[Any]], source_topics: frozenset[str]) -> dict[TP, list[Any]]:
    """Return fetched records with each source partition's folded into one `Batch`; other topics' pass unchanged.

    Changelogs must pass record by record: Faust's recovery counts their offsets one by one.
    """
    out: dict[TP, list[Any]] = {}
    for tp, group in records.items():
        if tp.topic in source_topics and group:
            last = group[-1]
            out[tp] = [Batch(tp.topic, tp.partition, last.offset, last.timestamp, last.timestamp_type, group)]
        else:
            out[tp] = group
    return out


class BatchConsumerThread(AIOKafkaConsumerThread):
    """Faust's consumer thread with shorter fetches and offsets that say in which log they count."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Both are read when the consumer starts.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # Faust has no setting for it
        consumer._isolation_level = READ_COMMITTED  # Faust does so only with transactions of its own
        commit = consumer.commit

        async def commit_with_metadata(offsets: Mapping[Any, OffsetAndMetadata]) -> None:
            metadata = self.consumer.positions.metadata
            with _COMMIT.time():
                await commit(
                    {tp: OffsetAndMetadata(at.offset, at.metadata or metadata(tp)) for tp, at in offsets.items()})

        consumer.commit = commit_with_metadata
        return consumer

    def join_again(self) -> None:
        """Give the partitions back and have them assigned again, as when another process joins."""
        self.thread_loop.call_soon_threadsafe(self._ensure_consumer()._coordinator.request_rejoin)

    async def committed(self, tps: Collection[Any]) -> dict[TP, tuple[int, str]]:
        """Return (next offset to read, metadata) of the partitions that the group has committed."""
        found = await self.call_thread(self._ensure_consumer()._coordinator.fetch_committed_offsets, list(tps))
        return {TP(tp.topic, tp.partition): (at.offset, at.metadata) for tp, at in found.items()}

    async def commit_at(self, offsets: Mapping[Any, OffsetAndMetadata]) -> None:
        """Commit these offsets, also ones below what is committed."""
        await self.call_thread(self._ensure_consumer().commit, offsets)


class BatchConsumer(Consumer):
    """The aiokafka consumer, delivering a partition's fetched records as one message.

    It keeps its own account: an offset may be committed once every message delivered before it is settled.
    Faust's own commits past an unacknowledged message when acknowledgements arrive out of order (faust-streaming #606),
    acknowledges messages it skips during a rebalance, and would list a batch's offsets one by one to look for gaps.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._delivered: defaultdict[TP, deque[int]] = defaultdict(deque)
        self._settled: defaultdict[TP, set[int]] = defaultdict(set)
        self.settled = 0  # batches, since the start
        self._owned_in: int | None = None  # the group's generation in which the changelog was last taken over
        self.positions: Seeker = self.app.seeker(self)
        self._positioned = False  # before that, aiokafka reads source partitions from wherever it thinks

    @property
    def unsettled(self) -> int:
        """Batches handed out that are still to be processed."""
        return sum(offset not in self._settled[tp] for tp, offsets in self._delivered.items() for offset in offsets)

    def settle(self, message: Message) -> None:
        """Note that everything the message caused is durable: its offset may be committed in its turn."""
        self.settled += 1
        self._settled[message.tp].add(message.offset)
        message.ack(self)  # what a rebalance waits for before it gives a partition up

    def drop(self, message: Message) -> None:
        """Give up a message of a lost partition: it is not committed, and the partition's next owner gets it again."""
        message.ack(self)
        self._thread.join_again()

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> list[TP]:
        # Faust looks into its own account, which it empties at a rebalance before the last commit.
        return [tp for tp, settled in self._settled.items() if settled]

    async def commit_and_end_transactions(self) -> None:
        """Commit what is settled, also if another commit is under way, which may have begun before that."""
        while self._commit_fut is not None:
            await self.maybe_wait_for_commit_to_finish()
        await super().commit_and_end_transactions()

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[Any]]:
        if self._buffered_partitions:
            timeout = min(timeout, HELD_BACK_S)
        sources = self.app.batched_topics
        if not self._positioned and active_partitions is not None:
            active_partitions = {tp for tp in active_partitions if tp.topic not in sources}
            if not active_partitions:
                await asyncio.sleep(HELD_BACK_S)
                return {}
        try:
            records = await super()._getmany(active_partitions, timeout)
        except OffsetOutOfRangeError as error:
            if self._positioned:
                await self.positions.out_of_range(error.args[0])
            return {}
        except NoOffsetForPartitionError:
            # aiokafka looked for a committed offset before recovery had said where a changelog is read. It has by now,
            # or will soon.
            return {}
        if not self._positioned:  # it went out of position meanwhile: these will be read again
            records = {tp: group for tp, group in records.items() if tp.topic not in sources}
        return fold_records(records, sources)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        read = self._read_offset[tp]
        if tp.topic in self.app.batched_topics and (read is None or record.offset >= read):  # Faust drops what is older
            self._delivered[tp].append(record.offset)
        return super()._to_message(tp, record)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: holes in a partition lie between delivered messages and need no bookkeeping here."""

    def _new_offset(self, tp: TP) -> int | None:
        """Return the offset to commit (last settled + 1) or None."""
        delivered, settled = self._delivered[tp], self._settled[tp]
        self._acked[tp] = []
        self._acked_index[tp].clear()
        last: int | None = None
        while delivered and delivered[0] in settled:
            last = delivered.popleft()
        if last is None:
            return None
        self._settled[tp] = {offset for offset in settled if offset > last}
        return last + 1

    async def perform_seek(self) -> None:
        """Seek the source partitions to where they are to be read on; see `positions`.

        What was delivered after that will be delivered again. Nothing is delivered meanwhile.
        """
        self._positioned = False
        self._delivered.clear()
        self._settled.clear()
        await self.positions.seek()
        self._positioned = True

    def read_on(self, tp: TP, offset: int, *, trusted: bool) -> None:
        """Take records from `offset` on. Only a `trusted` one keeps Faust from committing a smaller offset later."""
        self._read_offset[tp] = offset
        self._committed_offset[tp] = offset if trusted and offset else None

    async def committed(self, tps: Collection[TP]) -> dict[TP, tuple[int, str]]:
        """Return (next offset to read, metadata) of the partitions that the group has committed."""
        return await self._thread.committed(tps)

    async def commit_at(self, offsets: Mapping[Any, OffsetAndMetadata]) -> None:
        """Commit these offsets, also ones below what is committed."""
        await self._thread.commit_at(offsets)

    async def end_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Return the end offsets the broker lists; the embedded one's can lag by less than one batch."""
        return await super().highwaters(*partitions)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Return end offsets that may be trusted; of a changelog, up to where recovery has to read.

        Recovery asks first of all. That is when the changelog's partitions are taken over from their former owners, who
        might otherwise write after their ends were read.

        The embedded broker (tansu 0.6) lists the last *batch's first* record + 1 as the end offset, so a table read up
        to there would lack up to a batch of states. The end offset in its fetch responses is right, so records beyond
        the listed end are requested from each partition.
        """
        changelogs = [tp for tp in partitions if self._is_changelog_tp(tp)]
        if changelogs and self._owned_in != self.app.consumer_generation_id:
            generation = self.app.consumer_generation_id
            await self.app.changelog.take_over(tp.partition for tp in changelogs)
            self._owned_in = generation
        ends = {tp: end or 0 for tp, end in (await self.end_offsets(*partitions)).items()}
        filled = [tp for tp, end in ends.items() if end]
        if not filled:
            lower_offsets(self.app, {tp: ends[tp] for tp in changelogs})
            return ends
        probe = self._thread._create_client_consumer(self.transport)
        probe._isolation_level = READ_COMMITTED  # read when the consumer starts
        await probe.start()
        try:
            probe.assign(filled)
            for tp in filled:
                probe.seek(tp, ends[tp])
            async with asyncio.timeout(self.app.conf.broker_request_timeout):
                while any(probe.highwater(tp) is None for tp in filled):
                    await probe.getmany(timeout_ms=50, max_records=1)
                ends |= {tp: max(ends[tp], probe.highwater(tp) or 0) for tp in filled}
                to_read = {tp: ends[tp] for tp in changelogs if tp in filled}
                ends |= await read_ends(probe, await probe.beginning_offsets(list(to_read)), to_read)
        finally:
            await probe.stop()
        lower_offsets(self.app, {tp: ends[tp] for tp in changelogs})
        return ends

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Take the partitions; the sources are read once they are in position."""
        self._positioned = False
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit what is settled, then forget the partitions."""
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._delivered.pop(tp, None)
            self._settled.pop(tp, None)


class BatchTransport(Transport):
    """Faust's aiokafka transport with the batching consumer."""

    Consumer = BatchConsumer


# aiokafka asks the broker to create what it looks for, with the broker's own settings, and has no switch for it: an
# events topic deleted under a running role came back with 4 partitions instead of 2.
aiokafka.client.MetadataRequest = partial(MetadataRequest, allow_auto_topic_creation=False)
