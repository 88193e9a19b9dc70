"""Makes the planner follow which model is in use, as all roles do, and the items that come after its fit."""

from __future__ import annotations

import asyncio
import logging

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from schemas.artifacts import Registry
from schemas.calibration import Calibration
from schemas.catalogue.update import ItemUpdate
from schemas.codec import decode
from schemas.deployments import Deployments, base_of
from schemas.errors import PoisonError
from schemas.settings import Settings
from schemas.settings.librdkafka import client
from schemas.topics import ITEM_UPDATES
from streams.decisions.planner import Planner
from streams.profile.catalogue import ItemVectors

log = logging.getLogger("freshet.streams")
FOLLOW_EVERY_S = 1.0  # how often to look; it costs two small files


class ModelFollower:
    """Keeps a planner at the model in use. A model that cannot be loaded is tried again at every look."""

    def __init__(self, settings: Settings, planner: Planner) -> None:
        self._settings = settings
        self._planner = planner
        self._deployments = Deployments(settings.home)
        self._refused = ""  # the reason last logged

    async def follow(self) -> None:
        """Look once. Call it between batches."""
        planner = self._planner
        try:
            in_use = self._deployments.in_use()
            version = base_of(in_use.model_version)
            if version == planner.policy.model_version:
                planner.withdraw(in_use.withdrawn)
            elif planner.follow(*await asyncio.to_thread(opened, self._settings, version), in_use.withdrawn):
                log.warning("model %s is in use now: its thresholds hold, and knowledge of others is stale", version)
        except Exception as error:  # whatever loading raises: the planner has a model that works
            if str(error) != self._refused:
                log.error("the model in use cannot be followed, the old one's thresholds stay: %s", error)
            self._refused = str(error)
        else:
            self._refused = ""


class ItemFollower:
    """Gives a planner the vectors of items that came after the fit, from `item-updates`, read from its beginning.

    Until an update is here, an event with such an item has no weight in an interest.
    """

    def __init__(self, settings: Settings, planner: Planner) -> None:
        kafka = settings.kafka
        self._planner = planner
        self._vectors: ItemVectors | None = None
        self._similar: dict[str, dict[str, float]] = {}
        self._consumer = Consumer(client(kafka) | {
            "group.id": kafka.full("freshet-streams-items"), "enable.auto.commit": False, "fetch.wait.max.ms": 500},
            logger=log)
        self._consumer.assign([TopicPartition(kafka.full(ITEM_UPDATES.name), 0, OFFSET_BEGINNING)])

    async def follow(self) -> None:
        """Take what has come. Call it between batches."""
        came: dict[str, dict[str, float]] = {}
        for record in self._consumer.consume(1000, 0.0):
            if record.error() is not None or record.value() is None:  # the client recovers; an item was removed
                continue
            try:
                update = decode(ItemUpdate, record.value())
            except PoisonError as error:
                log.error("unusable record on %s: %s", ITEM_UPDATES.name, error.reason)
                continue
            came[update.item_id] = {one.item_id: one.score for one in update.similar}
        self._similar |= came
        if self._vectors is not self._planner.vectors:  # another model: all of them again
            came, self._vectors = self._similar, self._planner.vectors
        if came:
            self._vectors.add(came)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def opened(settings: Settings, version: str) -> tuple[ItemVectors, Calibration, str]:
    """Return what a planner needs of a fitted model: item vectors, thresholds and version.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    artifact = Registry(settings.home).open(version)
    return ItemVectors.load(artifact), artifact.calibration(), artifact.model_version


def load_planner(settings: Settings) -> Planner:
    """Return the planner of the model in use.

    Raises:
        ArtifactError: nothing was fitted, or it is damaged.
    """
    in_use = Deployments(settings.home).in_use()
    planner = Planner(*opened(settings, base_of(in_use.model_version))[:2], settings, base_of(in_use.model_version))
    planner.withdraw(in_use.withdrawn)
    return planner
