"""Hot reload: every process reads `model-updates` for itself and loads the model it names between batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from schemas.codec import decode
from schemas.deployments import Deployments, base_of
from schemas.errors import FreshetError, PoisonError
from schemas.messages import ModelUpdate
from schemas.settings import Settings
from schemas.topics import MODEL_UPDATES
from workers.kafka.configuration import consumer
from workers.kafka.outbox import Outbox

log = logging.getLogger(__name__)


class ModelUpdates:
    """The topic from its beginning, in no group: each process must load each model.

    Args:
        since: wall clock, seconds; updates published before are history (the registry's current model is newer).
        apply: loads what an update names. What it raises goes to the dead letters with the update, and the process
            keeps the model it has.
    """

    def __init__(self, settings: Settings, role: str, since: float, apply: Callable[[ModelUpdate], None]) -> None:
        self._role = role
        self._since = since
        self._apply = apply
        self._deployments = Deployments(settings.home)
        self._consumer = Consumer(
            consumer(settings.kafka, f"{role}-model-updates") | {
                "enable.partition.eof": True, "fetch.wait.max.ms": 500}, logger=log)
        self._consumer.assign([TopicPartition(MODEL_UPDATES.name, 0, OFFSET_BEGINNING)])
        self._outbox = Outbox(settings.kafka, role)

    def catch_up(self, within_s: float = 10.0) -> None:
        """Apply what is there already, so that a process that starts again starts with the model it had.

        First the registry's log, which outlives an embedded broker, then what the topic has beyond it. A broker that
        does not answer in time is not an error: `poll` will bring the rest.
        """
        log_ = self._deployments.log(self._since)
        current = self._deployments.registry.current()
        for deployed in log_:
            if base_of(deployed.update.model_version) == current:
                self._guarded(deployed.update)
        if log_:
            self._since = max(self._since, log_[-1].update.published_at)
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and not self.poll(0.1):
            pass

    def poll(self, wait_s: float = 0.0) -> bool:
        """Apply what has come; return whether the end of the topic was reached."""
        ended = False
        for record in self._consumer.consume(100, wait_s):
            error = record.error()
            if error is None:
                self._take(record)
            elif error.code() == KafkaError._PARTITION_EOF:
                ended = True
        return ended

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
        self._outbox.close()

    def _guarded(self, update: ModelUpdate) -> None:
        try:
            self._apply(update)
        except Exception as error:  # an adapter whose folder was removed must not keep a role from starting
            log.error("%s: %s is not used: %s", self._role, update.model_version, error)

    def _take(self, record: Message) -> None:
        if record.value() is None:  # a version withdrawn from the compacted topic
            return
        try:
            update = decode(ModelUpdate, record.value())
            if update.published_at < self._since:
                return
            self._apply(update)
        except Exception as error:  # a damaged model must not end a process that has a sound one
            reason = error.reason if isinstance(error, PoisonError) else f"{type(error).__name__}: {error}"
            log.error("%s: model update refused, the old model stays: %s", self._role, reason)
            self._outbox.bury(record, reason.splitlines()[0])
            self._outbox.flush()
        else:
            log.info("%s: now at model %s, adapter %s", self._role, update.model_version, update.adapter)


def adapter_folder(registry: Path, name: str) -> Path:
    """Return the folder of a LoRA adapter in the registry.

    Raises:
        FreshetError: it is absent or outside the registry.
    """
    folder = (registry / name).resolve()
    if not folder.is_relative_to(registry.resolve()):
        raise FreshetError(f"adapter {name!r} is outside the model registry {registry}")
    if not folder.is_dir():
        raise FreshetError(f"adapter {name!r} is not in the model registry {registry}")
    return folder
