"""Cached reads of knowledge for the hot path. They do not wait for a store that is unavailable."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cachetools import LRUCache

from schemas.errors import FreshetError, StoreUnavailableError
from workers.store.point import DamagedPoint, KnowledgePoint, KnowledgeStore

log = logging.getLogger(__name__)
# 20,000 points of 5×64 float16 with their fields take about 40 MB.
_CAPACITY = 20_000
_PROBE_S = (0.5, 10.0)  # first and longest pause between two probes of an unavailable store


@dataclass(frozen=True, slots=True)
class Lookup:
    """The result of a read.

    Args:
        points: the newest known point of each user who has one.
        unavailable: users whose point could not be read from the store; `points` may have an older one from the cache.
        damaged: users whose point in the store cannot be used; `points` may have an older one from the cache.
    """

    points: dict[str, KnowledgePoint]
    unavailable: frozenset[str]
    damaged: dict[str, DamagedPoint]


class CachedReader:
    """Reads points that are at least as new as requested.

    When the store becomes unavailable or refuses, one call waits for it. From then on a thread probes the store, no
    sooner than the store asks for, and calls answer at once from the cache until the store is back.
    """

    def __init__(self, store: KnowledgeStore, capacity: int = _CAPACITY) -> None:
        self._store = store
        self._cache: LRUCache[str, KnowledgePoint] = LRUCache(capacity)
        self._away = threading.Event()
        self._closing = threading.Event()
        self.hits = 0
        self.misses = 0

    @property
    def available(self) -> bool:
        """Whether the store answered the last request."""
        return not self._away.is_set()

    def read(self, wanted: Mapping[str, int]) -> Lookup:
        """Return the points of users. Each has at least the wanted version if the store has it.

        Args:
            wanted: user id → version.
        """
        points, missing = {}, []
        for user, version in wanted.items():
            held = self._cache.get(user)
            if held is not None:
                points[user] = held
            if held is None or held.version < version:
                missing.append(user)
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        if not missing:
            return Lookup(points, frozenset(), {})
        if not self._away.is_set():
            try:
                found = self._store.look(missing)
            except FreshetError as error:  # also a refused key: behaviour alone is better than no answer
                log.warning("%s; continuing without it until it is back", error)
                self._away.set()
                threading.Thread(target=self._probe, args=(_wait(error),), name="store-probe", daemon=True).start()
            else:
                for damaged in found.damaged.values():
                    log.error("a user's knowledge is damaged: %s", damaged.why)
                self._cache.update(found.points)
                return Lookup(points | found.points, frozenset(), found.damaged)
        return Lookup(points, frozenset(missing), {})

    def drop(self, users: Iterable[str]) -> None:
        """Forget users."""
        for user in users:
            self._cache.pop(user, None)

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    def close(self) -> None:
        """Stop probing. The store itself stays open."""
        self._closing.set()

    def _probe(self, wait: float) -> None:
        pause = _PROBE_S[0]
        while not self._closing.wait(max(pause, wait)):
            try:
                self._store.count()
            except Exception as error:  # after any error, the store is not usable yet
                log.info("still unavailable: %s", error)
                pause, wait = min(2 * pause, _PROBE_S[1]), _wait(error)
            else:
                log.warning("the knowledge store is back")
                self._away.clear()
                return


def _wait(error: Exception) -> float:
    """Return how long the store asks to be left alone, seconds."""
    return error.retry_after_s if isinstance(error, StoreUnavailableError) else 0.0
