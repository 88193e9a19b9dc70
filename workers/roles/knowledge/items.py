"""Brings the item knowledge of the model version in use into the store, beside the role's work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from schemas.artifacts import Artifact, Registry
from schemas.deployments import base_of
from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import Settings
from workers.store.item_files import ItemPoints
from workers.store.items import ItemStore, QdrantItems, write_missing

log = logging.getLogger(__name__)
_PAUSE_S = (1.0, 60.0)  # first and longest pause before a store that is away is tried again


class ItemFiller:
    """A thread that writes what the store lacks of a version's items. It waits for a store that is away.

    Any number of instances may do so at once: writes are conditional, and what is there is skipped.

    Args:
        settings: of store and encoder.
        artifact: the version in use.
        open_store: opens the store for a width.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, open_store: Callable[[int], ItemStore] | None = None,
    ) -> None:
        self._settings = settings
        self._open = open_store or (lambda dim: QdrantItems.at(settings, dim))
        self._version, self._artifact = artifact.model_version, artifact
        self._wake, self._closing = threading.Event(), threading.Event()
        self.counters = {"items_seen": 0, "items_written": 0}
        self._thread = threading.Thread(target=self._run, name="item-filler", daemon=True)
        self._wake.set()
        self._thread.start()

    def take(self, model_version: str) -> None:
        """Go on with another version; an adapter of the same one changes nothing."""
        if base_of(model_version) != self._version:
            self._version = base_of(model_version)
            self._wake.set()

    def close(self) -> None:
        """Stop after the current batch."""
        self._closing.set()
        self._wake.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while self._wake.wait() and not self._closing.is_set():
            self._wake.clear()
            try:
                if self._artifact.model_version != self._version:
                    self._artifact = Registry(self._settings.home).open(self._version)
                self._fill(ItemPoints(self._artifact, self._settings.items.encoder_name))
            except FreshetError as error:
                log.error("item knowledge is not in the store: %s", error)
            except Exception:  # the role's own work does not depend on it
                log.exception("item knowledge is not in the store")

    def _fill(self, points: ItemPoints) -> None:
        pause = _PAUSE_S[0]
        while points and not self._stopped():
            store = self._open(points.dim)
            try:
                store.ensure()
                wrote = 0
                for seen, wrote in write_missing(store, points):
                    self.counters.update(items_seen=seen, items_written=wrote)
                    if self._stopped():
                        return
            except StoreUnavailableError as error:
                log.warning("%s; item knowledge waits", error)
                self._wake.wait(max(pause, error.retry_after_s))
                pause = min(2 * pause, _PAUSE_S[1])
            else:
                log.info("item knowledge of %s: %d items, %d written", self._version, len(points), wrote)
                return
            finally:
                store.close()

    def _stopped(self) -> bool:
        return self._wake.is_set() or self._closing.is_set()
