"""A worker that waits until it has enough of a topic, works on all of it at once, and only then commits.

It keeps the newest message per user, so memory is bounded by what the work needs, even when one user floods the topic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition
from pydantic import BaseModel

from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError
from schemas.settings import Settings
from schemas.topics import Topic
from workers.runtime.loop import M, Process, Record, StreamWorker, split_tombstones

# An honest sample is a few kB. A batch of the largest allowed is 256 kB × 4,096 samples = 1 GB.
LARGEST = 256_000


class StoppedError(FreshetError):
    """The worker is told to stop in the middle of its work: nothing is committed, the next start repeats it."""


class GatheringWorker(StreamWorker[M]):
    """Consumes one topic; `process` gets the newest messages of `enough` users at a time.

    Args:
        enough: users to wait for.
        refuse: returns why a message is not used (it is skipped and counted), None if it is.
    """

    def __init__(
        self, settings: Settings, role: str, group: str, topic: Topic, process: Process[M], *, enough: int,
        refuse: Callable[[M], str | None], between: Callable[[], object] | None = None,
        counters: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        super().__init__(
            settings, role, group, topic, process, batch=500, between=between,
            counters=lambda: counters() | {"gathered": len(self._held), "passed_over": self.passed_over})
        self._enough = enough
        self._refuse = refuse
        self._held: dict[str, Message] = {}
        self.passed_over: dict[str, int] = {}

    def beat(self) -> None:
        """Tell the watchdog that the work goes on. Call it often, in the thread of `process`.

        Raises:
            StoppedError: the worker is to end.
        """
        if self._stopping.is_set():
            raise StoppedError(f"{self._role}: stopped while at work; it will be done again")
        self._progress.produced(0)

    def _poll(self) -> list[Message]:
        users, sources = split_tombstones(super()._poll())
        for user in users:
            self._held.pop(user, None)
        for source in sources:
            user, reason = self._read(source)
            if reason is None:
                self._held[user] = source
        self._outbox.flush()
        if len(self._held) < self._enough:
            if self._progress.waits_for != "samples":  # offsets stand still and lag grows: no stall
                self._progress.waiting("samples", None)
            return []
        self._progress.waiting("", None)
        held, self._held = list(self._held.values()), {}
        return held

    def _read(self, source: Message) -> tuple[str, str | None]:
        """Return the user and the reason why the message is not used, None if it is."""
        value = source.value()
        try:
            if value is not None and len(value) > LARGEST:
                raise PoisonError(f"{len(value)} bytes, at most {LARGEST} are taken")
            message: BaseModel = decode(self._model, value)
        except PoisonError as error:
            self._bury(source, error.reason, "unreadable")
            return "", "unreadable"
        reason = self._refuse(message)  # type: ignore[arg-type]
        if reason is not None:
            self.passed_over[reason] = self.passed_over.get(reason, 0) + 1
        return str(getattr(message, self._topic.key)), reason

    def _handle(self, records: list[Record[M]]) -> bool:  # type: ignore[override]
        try:
            return super()._handle(records)
        except StoppedError:
            return False

    def _revoked(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        super()._revoked(consumer, parts)
        # The next owner of the partitions reads their messages again.
        self._held = {user: source for user, source in self._held.items() if source.partition() in self._owned}
