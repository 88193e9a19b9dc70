"""The one loop of every Kafka worker: read a batch, process it, write its outputs, and only then commit.

At-least-once: offsets follow effects, so a crash repeats work and loses none; what `process` does must be idempotent.
A record that cannot be used goes to the dead letters with its bytes and the stream goes on.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition
from pydantic import BaseModel

from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError, StoreUnavailableError, is_records_fault
from schemas.liveness import DeadLetterKind, FailureLimit, Progress
from schemas.settings import Settings
from schemas.topics import Topic
from schemas.watch.instruments import PROGRESS
from schemas.watch.tracing import BatchTrace, Consumed, Traced, tracing
from workers.kafka.configuration import consumer
from workers.kafka.outbox import Outbox, Output, Rejected
from workers.kafka.refusals import Refusals
from workers.kafka.topics import create_topics
from workers.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)
Process = Callable[[Sequence[M]], Iterable[Sequence[Output | Rejected]]]
"""Turns messages into outputs, part by part; each part is on the broker before the next is asked for. A message that
it cannot use comes back as `Rejected`, as the same object."""

Forget = Callable[[Sequence[str]], Sequence[Output]]
"""Erases what a role holds of users, of whom a tombstone came, and returns the tombstones to pass on; may be repeated.
Messages of these users that came before are dropped, those that come after are processed after it."""

_IDLE_POLL_S = 0.2  # how late a stop signal or a hot reload is noticed while nothing comes in
# After this time the partitions are paused and the consumer is polled while the batch goes on, so that neither a slow
# model nor an unreachable store costs the group membership. Earlier, pausing would only throw fetched records away.
_PATIENCE_S = 1.0
_BACKOFF_S = (0.5, 8.0)  # first and longest wait for the store
# A commit fails so when the partition has another owner by now: it will process the records again.
_FENCED = frozenset({
    KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID, KafkaError._ASSIGNMENT_LOST})
_COMMIT_TRIES = 6


@dataclass(frozen=True, slots=True)
class Record(Generic[M]):
    """A decoded message and the Kafka record it came in."""

    message: M
    source: Message


class StreamWorker(Generic[M]):
    """Consumes one topic in a consumer group.

    Args:
        role: names the files under `settings.home/run`: `<role>.ready` once partitions are assigned, `<role>.json`
            with counters about once a second.
        process: see `Process`. It runs in a thread of its own, one batch at a time. StoreUnavailableError makes the
            worker hold the batch and try again until the store is back; any other exception makes it try the records
            one by one, and the one that raises alone goes to the dead letters.
        batch: records per call, at most.
        wait_s: how long to wait for a batch to fill once its first record is there. 0: what came during the batch
            before is the next one, so batches grow with the load, and at rest nobody waits.
        forget: see `Forget`; without it tombstones only end what came before them.
        between: called between batches and about five times a second while idle, in the thread of `process`.
    """

    def __init__(
        self, settings: Settings, role: str, group: str, topic: Topic, process: Process[M], *, batch: int,
        wait_s: float = 0.0, between: Callable[[], object] | None = None,
        counters: Callable[[], dict[str, Any]] = dict, forget: Forget = lambda users: (),
    ) -> None:
        self._settings = settings
        self._forget = forget
        self._role = role
        self._group = group
        self._topic = topic
        self._source = settings.kafka.full(topic.name)
        self._model = cast("type[M]", topic.model)
        self._process = process
        self._batch = batch
        self._wait_s = wait_s
        self._between = between
        self._owned: set[int] = set()
        self._stopping = threading.Event()
        # Beyond these the worker exits and the records stay in the topic: a lost GPU, a broken model.
        self._limits: defaultdict[int, FailureLimit] = defaultdict(FailureLimit)
        self._progress = Progress(settings.home, role, counters)
        self._doing = self._progress.doing
        PROGRESS.follow(role, self._progress)

    def stop(self) -> None:
        """Finish the current batch, commit it and return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop`, SIGTERM or SIGINT.

        Raises:
            FreshetError: the broker does not answer, outputs cannot be delivered, or every record fails.
        """
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGTERM, signal.SIGINT):
                signal.signal(name, lambda *_: self.stop())
        self._progress.clear()
        create_topics(self._settings.kafka)
        self._refusals = Refusals(self._settings.kafka)
        self._consumer = Consumer(
            consumer(self._settings.kafka, self._group, error_cb=self._refusals.note),
            logger=logging.getLogger(f"{__name__}.kafka"))
        self._outbox = Outbox(self._settings.kafka, self._role)
        self._consumer.subscribe([self._source], on_assign=self._assigned, on_revoke=self._revoked,
                                 on_lost=self._revoked)
        watchdog = Watchdog(self._settings, self._role, self._group, self._topic.name, self._progress,
                            lambda: set(self._owned))
        watchdog.start()
        clean = False
        try:
            with ThreadPoolExecutor(1, thread_name_prefix=self._role) as self._thread:
                while not self._stopping.is_set():
                    self._turn()
            clean = True
        except KafkaException as error:
            raise FreshetError(f"{self._role}: the Kafka client cannot go on: {error.args[0].str()}") from error
        finally:
            watchdog.stop()
            self._outbox.close()
            self._consumer.close()  # leaves the group, so that the others take over at once
            self._progress.end(clean)

    def _turn(self) -> None:
        self._refusals.check()
        if self._between is not None:
            self._doing.enter("model")
            self._wait_for(self._thread.submit(self._between), "model")
        self._doing.enter("idle")
        self._progress.write(self._behind())
        sources = self._poll()
        if not sources:
            return
        self._doing.enter("processing")
        started = time.monotonic()
        self._progress.in_hand(len(sources))
        users, kept = split_tombstones(sources)
        if users and not self._run([], BatchTrace(), lambda _: [self._forget(users)]):
            return
        records = self._decode(kept)
        if records and not self._handle(records):
            return  # stopped while waiting for the store: nothing of this batch is committed
        self._doing.enter("produce")
        self._outbox.flush()
        self._doing.enter("commit")
        self._commit(sources)
        self._progress.done(len(sources), time.monotonic() - started)

    def _poll(self) -> list[Message]:
        first = self._consumer.poll(_IDLE_POLL_S)
        if first is None:
            return []
        self._doing.enter("poll")
        messages = [first]
        if self._batch > 1:
            messages += self._consumer.consume(self._batch - 1, self._wait_s)
        out = []
        for message in messages:
            error = message.error()
            if error is None:
                out.append(message)
            elif error.fatal():
                raise FreshetError(f"{self._role}: the Kafka consumer cannot go on: {error.str()}")
            else:
                log.warning("%s: %s", self._role, error.str())  # the client recovers from these by itself
        return [message for message in out if message.partition() in self._owned]

    def _decode(self, sources: Sequence[Message]) -> list[Record[M]]:
        records = []
        for source in sources:
            try:
                records.append(Record(decode(self._model, source.value()), source))
            except PoisonError as error:
                self._bury(source, error.reason, "unreadable")
        return records

    def _handle(self, records: Sequence[Record[M]]) -> bool:
        """Process `records`, all at once or, after an exception, one by one; return False if stopped before the end."""
        try:
            return self._attempt(records)
        except KafkaException:
            raise
        except Exception as error:  # whatever a model raises on a record's content
            if not is_records_fault(error):
                raise
            failure = error
        if len(records) > 1:
            log.warning("%s: a batch of %d failed (%s); trying its records one by one", self._role, len(records),
                        _reason(failure), exc_info=failure)
            return all(self._handle([record]) for record in records)
        self._failed(records[0].source, _reason(failure), "failed", failure)
        return True

    def _failed(self, source: Message, reason: str, kind: DeadLetterKind, failure: Exception | None = None) -> None:
        """Bury a record, unless so many failed that it is not their fault."""
        exceeded = self._limits[source.partition()].failed()
        if exceeded is not None:
            raise FreshetError(f"{self._role}: {exceeded}, the last with {reason}; see the log above; "
                               "nothing of this batch was committed") from failure
        self._bury(source, reason, kind)

    def _attempt(self, records: Sequence[Record[M]]) -> bool:
        """Run `process` as below, and note the traces that the records belong to."""
        trace = tracing().batch(Consumed(
            self._role, self._settings.kafka.full(self._group), self._source, len(records)), [
            Traced(str(getattr(record.message, self._topic.key)), record.source.partition() or 0,
                   record.source.offset() or 0, headers)
            for record in records if (headers := record.source.headers())])
        try:
            done = self._run(records, trace)
        except BaseException as error:
            trace.end(error)
            raise
        trace.end()
        return done

    def _run(self, records: Sequence[Record[M]], trace: BatchTrace, process: Process[M] | None = None) -> bool:
        """Run `process` until the store lets it; return False if stopped while waiting for the store."""
        pause = _BACKOFF_S[0]
        sources = {id(record.message): record.source for record in records}
        while True:
            rejected: list[Rejected] = []
            try:
                for part in self._parts([record.message for record in records], process or self._process):
                    rejected += [one for one in part if isinstance(one, Rejected)]
                    outputs = [one for one in part if isinstance(one, Output)]
                    self._doing.enter("produce")
                    sent = self._outbox.send(
                        outputs, lambda one: trace.headers(one.key) if one.topic.key == "user_id" else [])
                    self._doing.enter("processing")
                    self._progress.produced(sent)
                    if sent < len(outputs):
                        self._progress.buried("too_large", len(outputs) - sent)
                refused = {id(message) for message, _ in rejected}
                for part, good in Counter(source.partition() for at, source in sources.items()
                                          if at not in refused).items():
                    self._limits[part].passed(good)
                for message, reason in rejected:
                    self._failed(sources[id(message)], reason, "rejected")
                return True
            except StoreUnavailableError as error:
                wait = max(pause, error.retry_after_s)  # the store bounds what it passes on
                log.warning("%s: %s; holding %d records, next try in %.1f s", self._role, error, len(records), wait)
                self._progress.waiting("store", self._behind())
                self._doing.enter("back_pressure")
                self._wait_for(self._thread.submit(self._stopping.wait, wait))
                self._doing.enter("processing")
                if self._stopping.is_set():
                    return False
                pause = min(2 * pause, _BACKOFF_S[1])
            finally:
                self._progress.waiting("", None)

    def _parts(self, messages: Sequence[M], process: Process[M]) -> Iterator[Sequence[Output | Rejected]]:
        parts = self._wait_for(self._thread.submit(lambda: iter(process(messages))))
        while (part := self._wait_for(self._thread.submit(next, parts, None))) is not None:
            yield part

    def _wait_for(self, future: Future[Any], what: str = "") -> Any:
        """Return the future's result; while it takes long, keep the group membership by polling paused partitions.

        Args:
            what: what the role waits for meanwhile, which is no stall as long as a start may take; "" = for its own
                work.
        """
        try:
            return future.result(_PATIENCE_S)
        except FutureTimeoutError:
            if future.done():
                raise
        paused: list[TopicPartition] = []
        until = time.monotonic() + self._settings.watchdog.start_s
        if what:
            self._progress.waiting(what, None)
        while not future.done():
            if what and time.monotonic() > until:
                self._progress.waiting("", None)
                what = ""
            owned = self._consumer.assignment()
            if owned and {p.partition for p in owned} != {p.partition for p in paused}:
                self._consumer.pause(owned)  # again after a rebalance: new partitions arrive unpaused
                paused = owned
            early = self._consumer.poll(_IDLE_POLL_S)
            if early is not None and early.error() is None:  # it came with an assignment: to be read again
                self._consumer.seek(TopicPartition(early.topic(), early.partition(), early.offset()))
            self._progress.write(None)
        if what:
            self._progress.waiting("", None)
        still = [part for part in paused if part.partition in self._owned]
        if still:
            self._consumer.resume(still)
        return future.result()

    def _bury(self, source: Message, reason: str, kind: DeadLetterKind) -> None:
        log.warning("%s: dead letter %s[%s]@%s: %s", self._role, source.topic(), source.partition(), source.offset(),
                    reason)
        self._outbox.bury(source, reason)
        self._progress.buried(kind, reason=reason)

    def _commit(self, sources: Sequence[Message]) -> None:
        newest: dict[int, int] = {}
        for source in sources:
            newest[source.partition()] = max(newest.get(source.partition(), 0), source.offset() + 1)
            kind, written_ms = source.timestamp()
            if kind != TIMESTAMP_NOT_AVAILABLE:
                self._progress.finished(self._topic.name, source.partition(), written_ms / 1000.0)
        # A partition revoked while the batch was worked on is its new owner's to commit.
        offsets = [TopicPartition(self._source, part, offset) for part, offset in newest.items()
                   if part in self._owned]
        for attempt in range(_COMMIT_TRIES if offsets else 0):
            try:
                self._consumer.commit(offsets=offsets, asynchronous=False)
                return
            except KafkaException as error:
                cause = error.args[0]
                if cause.code() in _FENCED:
                    log.warning("%s: commit fenced (%s); the records will be processed again", self._role, cause.str())
                    return
                if attempt == _COMMIT_TRIES - 1:
                    raise FreshetError(f"{self._role}: offsets cannot be committed: {cause.str()}") from error
                log.warning("%s: commit failed (%s), trying again", self._role, cause.str())
                self._stopping.wait(0.5 * (attempt + 1))  # told to stop, the other tries come without a pause

    def _behind(self) -> int | None:
        """Return the number of records not yet read, by the last fetches; None before a partition's first."""
        if not self._owned:
            return 0
        parts = [TopicPartition(self._source, part) for part in sorted(self._owned)]
        total = 0
        for position in self._consumer.position(parts):
            _, high = self._consumer.get_watermark_offsets(position, cached=True)
            if high < 0:
                return None
            total += max(0, high - max(0, position.offset)) if position.offset >= 0 else 0
        return total

    def _assigned(self, _: Consumer, parts: list[TopicPartition]) -> None:
        self._owned |= {part.partition for part in parts}
        log.info("%s: assigned partitions %s of %s", self._role, sorted(self._owned), self._source)
        self._progress.ready()

    def _revoked(self, _: Consumer, parts: list[TopicPartition]) -> None:
        self._owned -= {part.partition for part in parts}


def split_tombstones(sources: Sequence[Message]) -> tuple[list[str], list[Message]]:
    """Return the keys that have a tombstone in a batch, and the records that none of them ends.

    A record without key and value is no tombstone; it stays, and is unreadable.
    """
    ends = {(source.key(), source.partition()): source.offset() or 0 for source in sources
            if source.value() is None and source.key()}
    if not ends:
        return [], list(sources)
    kept = [source for source in sources
            if (source.offset() or 0) > ends.get((source.key(), source.partition()), -1)]
    return list(dict.fromkeys(_text(key) for key, _ in ends)), kept


def _text(key: str | bytes | None) -> str:
    return key.decode("utf-8", "surrogatepass") if isinstance(key, bytes) else key or ""


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return error.reason if isinstance(error, PoisonError) else f"{type(error).__name__}: {lines[0] if lines else ''}"
