"""Hot reload: every process follows what the registry says is in use and loads it between batches.

The registry (`schemas/deployments.py`) is the only truth, so all roles agree, and one that starts again starts with the
same version. Each process looks at it every second, and at once when a message comes on `model-updates`. A message that
is newer than the registry comes from another program, or from a host with a folder of models of its own: it is written
into the registry here, and then followed like everything else.

What cannot be loaded is tried again, with pauses from 1 s to 1 min and at once when its files change, until it is
loaded or something else is in use. Nobody can say which reasons pass: a file that a shared volume does not show yet and
a damaged one look the same. The model in use stays in use until then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import OFFSET_BEGINNING, TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, Message, TopicPartition

from schemas.codec import decode
from schemas.deployments import Deployments, base_of
from schemas.errors import FreshetError, PoisonError
from schemas.messages import ModelUpdate
from schemas.settings import Settings
from schemas.topics import MODEL_UPDATES
from workers.kafka.configuration import consumer
from workers.kafka.outbox import Outbox

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
PAUSE_S = (1.0, 60.0)  # first and longest wait after a failure
FUTURE_S = 3600.0  # an update dated later than this would make all others look old


@dataclass(slots=True)
class Retry:
    """When to try something again that failed. Times are monotonic seconds, passed in."""

    pause_s: float = 0.0
    due_at: float = 0.0
    reason: str = ""

    def failed(self, now: float, reason: str) -> bool:
        """Note a failure; return whether its reason differs from the last one, and should be logged."""
        self.pause_s = min(2 * self.pause_s, PAUSE_S[1]) or PAUSE_S[0]
        self.due_at = now + self.pause_s
        new, self.reason = reason != self.reason, reason
        return new


class Follower:
    """Keeps one process at what the registry says is in use. Needs no broker.

    Args:
        loaded: model version that the process has loaded, without an adapter.
        apply: loads what an update names, or raises and changes nothing.
        clock: monotonic seconds.
    """

    def __init__(
        self, deployments: Deployments, role: str, loaded: str, apply: Callable[[ModelUpdate], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deployments = deployments
        self._role = role
        self._apply = apply
        self._clock = clock
        self._applied = _content(ModelUpdate(model_version=loaded, published_at=0.0))
        self._wanted: ModelUpdate | None = None
        self._seen: tuple[object, ...] = ()
        self._files: tuple[object, ...] = ()
        self._offered: ModelUpdate | None = None
        self._look_at = 0.0
        self._reading, self._taking, self._loading = Retry(), Retry(), Retry()

    def counters(self) -> dict[str, str]:
        """Return, for the role's progress file, why the process does not use what it should ("" = it does)."""
        return {"model_waiting": self._loading.reason or self._taking.reason or self._reading.reason}

    def offer(self, update: ModelUpdate) -> None:
        """Take what a message names; the newest of several counts."""
        self._look_at = 0.0
        if self._offered is None or update.published_at > self._offered.published_at:
            self._offered, self._taking = update, Retry()

    def follow(self) -> None:
        """Load what is in use, if that changed and it is time to look or to try again."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        if self._offered is not None and now >= self._taking.due_at:
            self._take_over(self._offered, now)
        if self._look(now) and self._wanted is not None:
            self._load(self._wanted, now)

    def _take_over(self, update: ModelUpdate, now: float) -> None:
        try:
            self._deployments.take_over(update)
        except Exception as error:  # not here yet, or the folder cannot be written
            if self._taking.failed(now, f"{update.model_version}: {_line(error)}"):
                log.error("%s: a message names a model that cannot be used yet, the old one stays: %s", self._role,
                          self._taking.reason)
        else:
            self._offered, self._taking = None, Retry()

    def _look(self, now: float) -> bool:
        """Read what is in use if it may have changed; return whether it is known and not loaded."""
        try:
            seen = self._deployments.signature()
            if seen != self._seen:
                wanted = self._deployments.in_use()
                if self._wanted is None or _content(wanted) != _content(self._wanted):
                    self._loading = Retry()
                self._wanted, self._seen = wanted, seen
        except Exception as error:
            if self._reading.failed(now, _line(error)):
                log.error("%s: cannot tell which model is in use, the old one stays: %s", self._role, _line(error))
            return False
        self._reading = Retry()
        return self._wanted is not None and _content(self._wanted) != self._applied

    def _load(self, update: ModelUpdate, now: float) -> None:
        files = self._trace(update)
        if now < self._loading.due_at and files == self._files:
            return
        self._files = files
        try:
            self._apply(update)
        except Exception as error:  # whatever loading raises: the process has a model that works
            if self._loading.failed(self._clock(), f"{update.model_version}: {_line(error)}"):
                log.error("%s: model %s cannot be loaded, the old one stays and it is tried again: %s", self._role,
                          update.model_version, _line(error), exc_info=not isinstance(error, OSError))
        else:
            self._applied, self._loading = _content(update), Retry()
            log.info("%s: now at model %s, adapter %s", self._role, update.model_version, update.adapter)

    def _trace(self, update: ModelUpdate) -> tuple[object, ...]:
        """Return what changes when a file of a version does."""
        folder = self._deployments.registry.folder
        folders = [folder / base_of(update.model_version), *([folder / update.adapter] if update.adapter else [])]
        out: list[object] = []
        try:
            for path in sorted(path for one in folders for path in one.iterdir()):
                found = path.stat()
                out.append((path.name, found.st_size, found.st_mtime_ns))
        except OSError as error:
            out.append(str(error))
        return tuple(out)


class ModelUpdates:
    """A `Follower` and the topic `model-updates`, read from its beginning and in no group: all processes read all.

    Args: as `Follower`.
    """

    def __init__(self, settings: Settings, role: str, loaded: str, apply: Callable[[ModelUpdate], None]) -> None:
        self._role = role
        self._follower = Follower(Deployments(settings.home), role, loaded, apply)
        self.counters = self._follower.counters
        self._consumer = Consumer(
            consumer(settings.kafka, f"{role}-model-updates") | {
                "enable.partition.eof": True, "fetch.wait.max.ms": 500}, logger=log)
        self._consumer.assign([TopicPartition(settings.kafka.full(MODEL_UPDATES.name), 0, OFFSET_BEGINNING)])
        self._outbox = Outbox(settings.kafka, role)

    def catch_up(self, within_s: float = 10.0) -> None:
        """Load what is in use, so that a process that starts again starts with it.

        A broker that does not answer in time is not an error: the registry knows, and `poll` brings the rest.
        """
        deadline = time.monotonic() + within_s
        while not self._read(0.1) and time.monotonic() < deadline:
            pass
        self._follower.follow()

    def poll(self) -> None:
        """Load what came into use; call it between batches."""
        self._read(0.0)
        self._follower.follow()

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
        self._outbox.close()

    def _read(self, wait_s: float) -> bool:
        """Pass on what has come; return whether the end of the topic was reached."""
        ended = False
        for record in self._consumer.consume(100, wait_s):
            error = record.error()
            if error is None:
                self._take(record)
            elif error.code() == KafkaError._PARTITION_EOF:
                ended = True
        return ended

    def _take(self, record: Message) -> None:
        if record.value() is None:  # a version deleted from the compacted topic
            return
        try:
            update = decode(ModelUpdate, record.value())
            kind, sent_ms = record.timestamp()
            now = max(time.time(), 0.0 if kind == TIMESTAMP_NOT_AVAILABLE else sent_ms / 1000.0)
            if not update.published_at <= now + FUTURE_S:
                raise PoisonError(f"published_at {update.published_at:g} is in the future")
        except PoisonError as error:
            log.error("%s: unusable model update: %s", self._role, error.reason)
            self._outbox.bury(record, error.reason)
            self._outbox.flush()
        else:
            self._follower.offer(update)


def _content(update: ModelUpdate) -> tuple[object, ...]:
    return update.model_version, update.adapter, tuple(update.withdrawn)


def _line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, FreshetError) else f"{type(error).__name__}: {text}"
