"""Topics read from their start and then on and on: all partitions, no consumer group, nothing committed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client

_LOOK_S = 5.0  # how late a topic or a partition that is created later is noticed
_ASK_S = 10.0  # the broker is asked with this patience


class LiveTopics:
    """Records of some topics, those that come included. Used in one thread; figures may be read from others.

    A topic that is absent, and partitions that are added, are read once they are there.

    Args:
        topics: names.
        newest: topic → records per partition; what is older than that at the start is not read. Others are read whole.
    """

    def __init__(self, settings: KafkaSettings, topics: Collection[str], newest: Mapping[str, int]) -> None:
        self._topics = {settings.full(name) for name in topics}
        self._newest = {settings.full(name): number for name, number in newest.items()}
        # librdkafka's default queue of 64 MB per partition would be most of the process's memory.
        self._consumer = Consumer(client(settings) | {
            "group.id": settings.full("freshet-views"), "enable.auto.commit": False, "enable.partition.eof": True,
            "auto.offset.reset": "earliest", "fetch.wait.max.ms": 50, "queued.max.messages.kbytes": 16_384,
            "statistics.interval.ms": 0})
        self._begin: dict[tuple[str, int], int] = {}
        self._end: dict[tuple[str, int], int] = {}
        self._at: dict[tuple[str, int], int] = {}
        self._unread: set[tuple[str, int]] = set()
        self._looked = float("-inf")
        self._seen = False

    @property
    def caught_up(self) -> bool:
        """Whether every partition has been read to where it ended when it was first seen."""
        return self._seen and not self._unread

    @property
    def share_read(self) -> float:
        """Share of the offsets between start and end, as they were when first seen, that are read; 0 to 1."""
        if not self._seen:
            return 0.0
        parts = list(self._end.items())
        todo = sum(max(0, end - self._begin[part]) for part, end in parts)
        left = sum(max(0, end - self._at[part]) for part, end in parts if part in self._unread)
        return 1.0 if not todo else 1.0 - left / todo

    def behind(self) -> int:
        """Return how many offsets are not read yet, as far as the last fetches tell."""
        total = 0
        for part, at in list(self._at.items()):
            try:
                _, high = self._consumer.get_watermark_offsets(TopicPartition(*part), cached=True)
            except KafkaException:
                continue
            total += max(0, high - at) if high >= 0 else max(0, self._end[part] - at)
        return total

    def poll(self, seconds: float, at_most: int) -> list[Message]:
        """Return the records that came within `seconds`, possibly none; while the broker is away, none.

        Their topics have the names that the broker knows.

        Raises:
            FreshetError: the broker refuses for good.
        """
        if time.monotonic() - self._looked > _LOOK_S:
            self._look()
        out = []
        for message in self._consumer.consume(at_most, seconds):
            part = message.topic(), message.partition()
            error = message.error()
            if error is None:
                out.append(message)
                self._reached(part, message.offset() + 1)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._reached(part, message.offset())
                self._unread.discard(part)
            elif error.fatal() or error.code() in (
                    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
                raise FreshetError(f"reading {message.topic()}: {error.str()}")
        return out

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _reached(self, part: tuple[str, int], offset: int) -> None:
        if part in self._end:
            self._at[part] = offset
            if offset >= self._end[part]:
                self._unread.discard(part)

    def _look(self) -> None:
        """Begin to read partitions that were not there before."""
        self._looked = time.monotonic()
        try:
            listed = self._consumer.list_topics(timeout=_ASK_S).topics
            new = [(name, number) for name in sorted(self._topics & listed.keys())
                   for number in sorted(listed[name].partitions) if (name, number) not in self._end]
            marks = {part: self._consumer.get_watermark_offsets(TopicPartition(*part), timeout=_ASK_S) for part in new}
        except KafkaException:  # it is away, or elects a leader: what is read already goes on by itself
            return
        for (name, number), (low, high) in marks.items():
            begin = max(low, high - self._newest[name]) if name in self._newest else low
            self._begin[name, number] = self._at[name, number] = begin
            self._end[name, number] = high
            if high > begin:
                self._unread.add((name, number))
        if marks:
            self._consumer.incremental_assign([TopicPartition(*part, self._begin[part]) for part in marks])
        self._seen = True
