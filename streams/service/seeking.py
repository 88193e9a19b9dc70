"""Seeks a consumer's partitions to where `positions` says, and says so where that is not the committed offset."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.types import TP

from schemas.errors import FreshetError
from schemas.settings import Settings
from schemas.topics import BEHAVIOUR_EVENTS, CHANGELOG
from streams.service.cluster import Cluster
from streams.service.origin import confirm
from streams.service.positions import Life, Position, decide, explain

log = logging.getLogger("freshet.streams")

# A log that seems cut is looked at again after this long: a broker that has just become the leader may not yet list
# what is replicated.
LOOK_AGAIN_S = 1.0
# Counters of `run/streams.json`: partitions whose committed offset was no more good, and offsets that were never read.
FOUND = ("offsets_expired", "offsets_cut", "offsets_recreated", "offsets_forgotten", "offsets_missed")


class Seeker:
    """Where the source partitions of one consumer are read.

    Args:
        consumer: the `BatchConsumer` whose partitions are meant.
        cluster: asked at every assignment whether it is the same.
        settings: where the home is.
        found: counts how often a partition was found in the states of `FOUND`, and the offsets that were missed.
    """

    def __init__(self, consumer: Any, cluster: Cluster, settings: Settings, found: Counter[str]) -> None:
        self._consumer = consumer
        self._cluster = cluster
        self._folder = settings.home / "streams"
        self._events, self._changelog = map(settings.kafka.full, (BEHAVIOUR_EVENTS.name, CHANGELOG))
        self._plain = settings.kafka.plain
        self.lives: dict[TP, Life] = {}
        self._found = found

    def metadata(self, tp: Any) -> str:
        """Return what is committed along with an offset of the partition."""
        life = self.lives.get(TP(tp.topic, tp.partition))
        return "" if life is None else str(life)

    def events_life(self, partition: int) -> int:
        """Return the number of the log that the offsets of a partition's events count in, 0 = not known."""
        life = self.lives.get(TP(self._events, partition))
        return 0 if life is None else life.token

    async def seek(self) -> None:
        """Seek every source partition. An offset other than the committed one is committed at once.

        Raises:
            KafkaError: the broker does not tell the offsets.
            FreshetError: nor the topics; or they do not fit the settings, or the cluster is another one.
        """
        consumer = self._consumer
        tps = [tp for tp in consumer.assignment() if tp.topic in consumer.app.batched_topics]
        if not tps:
            return
        identity = await asyncio.to_thread(self._cluster.checked)
        confirm(self._folder, identity.origin)
        ids = identity.topics
        committed = await consumer.committed(tps)
        found, ends = await self._decide(tps, committed, ids)
        if any(position.finding == "cut" for position in found.values()):
            await asyncio.sleep(LOOK_AGAIN_S)
            found, ends = await self._decide(tps, committed, ids)
        for tp, position in found.items():
            self._note(tp, committed[tp][0] if tp in committed else None, ends[tp] or 0, position)
            self.lives[tp] = position.life
            consumer.read_on(tp, position.offset, trusted=position.finding == "resumed")
        await consumer.seek_wait({tp: position.offset for tp, position in found.items()})
        await self._commit({tp: position for tp, position in found.items() if position.finding != "resumed"})

    async def out_of_range(self, offsets: Mapping[Any, int]) -> None:
        """Go on after the broker had nothing at these fetch offsets.

        Raises:
            FreshetError: a log has lost its end while it was read. What that means for states in memory and batches on
                the way is decided by a fresh start, which finds the same.
        """
        consumer = self._consumer
        tps = {TP(tp.topic, tp.partition): offset for tp, offset in offsets.items()}
        starts = await consumer.earliest_offsets(*tps)
        ends = await consumer.highwaters(*tps)
        for tp, offset in tps.items():
            position = decide(offset, self.lives.get(tp), "", starts[tp] or 0, ends[tp] or 0)
            if tp.topic not in consumer.app.batched_topics:  # a changelog: the states on disk are as new as it
                await consumer.seek_wait({tp: min(position.offset, ends[tp])})
                continue
            self._note(tp, offset, ends[tp], position)
            if position.finding == "cut":
                raise FreshetError(explain(tp.topic, tp.partition, offset, ends[tp], position))
            await consumer.seek_wait({tp: position.offset})

    async def _decide(self, tps: list[TP], committed: Mapping[TP, tuple[int, str]], ids: Mapping[str, str],
                      ) -> tuple[dict[TP, Position], Mapping[TP, int]]:
        consumer = self._consumer
        starts = await consumer.earliest_offsets(*tps)
        ends = dict(await consumer.end_offsets(*tps))
        if short := [tp for tp in tps if tp in committed and committed[tp][0] > (ends[tp] or 0)]:
            ends |= await consumer.highwaters(*short)
        found = {}
        for tp in tps:
            offset, text = committed.get(tp, (None, ""))
            topic_id = ids.get(self._plain(tp.topic), "")
            found[tp] = decide(offset, Life.parse(text), topic_id, starts[tp] or 0, ends[tp] or 0,
                               processed=self._processed(tp))
        return found, ends

    def _note(self, tp: TP, offset: int | None, end: int, position: Position) -> None:
        if text := explain(tp.topic, tp.partition, offset, end, position):
            log.error("%s", text)
            self._found[f"offsets_{position.finding}"] += 1
            self._found["offsets_missed"] += position.missed

    def _processed(self, tp: TP) -> bool:
        """Return whether there are states that records of the partition made."""
        newest = self._consumer.app.tables.recovery.active_highwaters.get(TP(self._changelog, tp.partition))
        return tp.topic == self._events and newest is not None and newest >= 0

    async def _commit(self, reset: Mapping[TP, Position]) -> None:
        """Commit new offsets.

        A log that has grown past its old offset by the next start would look sound, and a partition without an offset
        would look as if it had been lost.
        """
        if not reset:
            return
        try:
            await self._consumer.commit_at({
                TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(position.offset, str(position.life))
                for tp, position in reset.items()})
        except KafkaError as error:  # another rebalance: the partition's next owner finds the same
            log.warning("reset offsets are not committed yet: %r", error)
