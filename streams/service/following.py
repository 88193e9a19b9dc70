"""Makes the planner follow which model is in use, as all roles do."""

from __future__ import annotations

import asyncio
import logging

from schemas.artifacts import Registry
from schemas.calibration import Calibration
from schemas.deployments import Deployments, base_of
from schemas.settings import Settings
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
