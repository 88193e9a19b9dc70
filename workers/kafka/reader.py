"""Reads topics from the side: all partitions, no consumer group, nothing committed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client
from streams.service.outbox import partition_of


class TopicReader:
    """Records of some topics as they come; `settings.plain` gives the plain name of a record's topic.

    Args:
        settings: the broker.
        topics: plain names; each must be there.
        from_beginning: start with the oldest record instead of the next new one.
    """

    def __init__(self, settings: KafkaSettings, topics: Sequence[str], *, from_beginning: bool = False) -> None:
        self._settings = settings
        self._consumer = _consumer(settings)
        if from_beginning:
            starts = dict.fromkeys(_parts(self._consumer, settings, topics), OFFSET_BEGINNING)
        else:
            # Not OFFSET_END: that is looked up at the first fetch, and a record sent in between is missed.
            starts = {part: high for part, (_, high) in _ends(self._consumer, settings, topics).items()}
        for topic in map(settings.full, topics):
            if not any(name == topic for name, _ in starts):
                raise FreshetError(f"there is no topic {topic} at {settings.bootstrap}; `freshet topics --create`")
        assignment = [TopicPartition(topic, number, start) for (topic, number), start in starts.items()]
        self._consumer.assign(assignment)
        self._open = set(starts)

    @property
    def ended(self) -> bool:
        """Whether every partition was read to what was its end at that moment."""
        return not self._open

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def poll(self, seconds: float, at_most: int = 1000) -> list[Message]:
        """Return the records that came within `seconds`, possibly none.

        Raises:
            FreshetError: the broker refuses.
        """
        out = []
        for message in self._consumer.consume(at_most, seconds):
            error = message.error()
            if error is None:
                out.append(message)
            elif error.fatal():
                raise FreshetError(f"reading {message.topic()}: {error.str()}")
            elif _at_end(message):
                self._open.discard((message.topic(), message.partition()))
        return out

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def read_all(settings: KafkaSettings, topics: Sequence[str], *, key: bytes | None = None,
             last: int | None = None, within_s: float = 30.0) -> list[Message]:
    """Return everything `topics` hold at this moment, in order per partition; names are as in `TopicReader`.

    Args:
        key: only the partitions that records of this key are in.
        last: only this many newest records per partition; None = all.

    Raises:
        FreshetError: it took longer than `within_s` seconds.
    """
    consumer = _consumer(settings)
    try:
        marks = _ends(consumer, settings, topics)
        counts = Counter(topic for topic, _ in marks)
        marks = {(topic, number): (low, high) for (topic, number), (low, high) in marks.items()
                 if high > low and (key is None or number == partition_of(key, counts[topic]))}
        return _read(consumer, {part: (low if last is None else max(low, high - last), high)
                                for part, (low, high) in marks.items()}, within_s)
    finally:
        consumer.close()


def read_since(settings: KafkaSettings, starts: Mapping[tuple[str, int], int], *, within_s: float = 30.0
               ) -> list[Message]:
    """Return what partitions hold at this moment from an offset on, in order per partition.

    Args:
        starts: (plain name of the topic, partition) → offset.

    Raises:
        FreshetError: it took longer than `within_s` seconds.
    """
    consumer = _consumer(settings)
    try:
        ends = _ends(consumer, settings, sorted({topic for topic, _ in starts}))
        wanted = {(settings.full(topic), number): start for (topic, number), start in starts.items()}
        return _read(consumer, {part: (max(start, ends[part][0]), ends[part][1]) for part, start in wanted.items()
                                if part in ends and ends[part][1] > start}, within_s)
    finally:
        consumer.close()


def watermarks(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Return per topic that exists, by its plain name, the (first, next) offset of each partition."""
    consumer = _consumer(settings)
    try:
        out: dict[str, list[tuple[int, int]]] = {}
        for (topic, _), marks in sorted(_ends(consumer, settings, topics).items()):
            out.setdefault(settings.plain(topic), []).append(marks)
        return out
    finally:
        consumer.close()


def _consumer(settings: KafkaSettings) -> Consumer:
    # A group id is required by the client; without subscribe and commit it never reaches the broker.
    return Consumer(client(settings) | {
        "group.id": settings.full("freshet-reader"), "enable.auto.commit": False, "enable.partition.eof": True,
        "fetch.wait.max.ms": 50, "log_level": 0})


def _read(consumer: Consumer, ranges: Mapping[tuple[str, int], tuple[int, int]], within_s: float) -> list[Message]:
    """Return the records of (first offset, end) per partition; topics have their names on the servers."""
    marks = dict(ranges)
    consumer.assign([TopicPartition(*part, first) for part, (first, _) in marks.items()])
    out: list[Message] = []
    deadline = time.monotonic() + within_s
    # Two ways to be done: a topic that is written to more often than every 50 ms never reports its end, and the record
    # before the end may be gone by compaction, or be the marker of a transaction.
    while marks:
        for message in consumer.consume(5000, 0.2):
            part = message.topic(), message.partition()
            if message.error() is None:
                out.append(message)
            if _at_end(message) or (part in marks and message.offset() >= marks[part][1] - 1):
                marks.pop(part, None)
        if marks and time.monotonic() > deadline:
            names = ", ".join(sorted({topic for topic, _ in ranges}))
            raise FreshetError(f"reading {names} took longer than {within_s:.0f} s")
    return out


def _at_end(message: Message) -> bool:
    return message.error() is not None and message.error().code() == KafkaError._PARTITION_EOF


def _parts(consumer: Consumer, settings: KafkaSettings, topics: Sequence[str]) -> list[tuple[str, int]]:
    try:
        known = consumer.list_topics(timeout=10.0).topics
    except KafkaException as error:
        raise FreshetError(f"no broker answers at {settings.bootstrap}: {error}") from None
    return [(topic, number) for topic in map(settings.full, topics) if topic in known
            for number in sorted(known[topic].partitions)]


def _ends(consumer: Consumer, settings: KafkaSettings, topics: Sequence[str]) -> dict[tuple[str, int], tuple[int, int]]:
    """Return (first, next) offset per partition, topics by their names on the servers.

    The embedded broker lists a partition's end as the first record of its last *batch* plus one. Only what it reports
    along with fetched records is the end, so one fetch at the end of each partition is waited for.
    """
    try:
        marks = {part: consumer.get_watermark_offsets(TopicPartition(*part), timeout=10.0)
                 for part in _parts(consumer, settings, topics)}
    except KafkaException as error:
        raise FreshetError(f"{settings.bootstrap} does not answer: {error}") from None
    waiting = {part for part, (low, high) in marks.items() if high > low}
    consumer.assign([TopicPartition(*part, marks[part][1] - 1) for part in waiting])
    deadline = time.monotonic() + 5.0
    while waiting and time.monotonic() < deadline:
        for message in consumer.consume(1000, 0.05):
            part = message.topic(), message.partition()
            if part in waiting and (message.error() is None or _at_end(message)):
                low, listed = marks[part]
                marks[part] = low, max(listed, consumer.get_watermark_offsets(TopicPartition(*part), cached=True)[1])
                waiting.remove(part)
    consumer.unassign()
    return marks
