"""Reads of knowledge for the hot path: a bounded cache before the store, and no waiting for a store that is away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from cachetools import LRUCache

from schemas.errors import StoreUnavailableError
from workers.store.point import KnowledgePoint, KnowledgeStore

log = logging.getLogger(__name__)
# 20,000 points of 5×64 float16 with their fields: some 40 MB.
_CAPACITY = 20_000
_PROBE_S = (0.5, 10.0)  # first and longest pause between two probes of a store that is away


@dataclass(frozen=True, slots=True)
class Lookup:
    """What was found.

    Args:
        points: the newest known point of each user that has one.
        unavailable: users whose point could not be asked for; an older one from the cache may be in `points`.
    """

    points: dict[str, KnowledgePoint]
    unavailable: frozenset[str]


class CachedReader:
    """Reads points at least as new as asked for.

    A call waits for the store once when it goes away; from then on a thread probes it, and calls answer at once from
    the cache until it is back.
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
        """Whether the store answered when last asked."""
        return not self._away.is_set()

    def read(self, wanted: Mapping[str, int]) -> Lookup:
        """Return the points of users, each of the version wanted or a newer one where the store has it."""
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
            return Lookup(points, frozenset())
        if not self._away.is_set():
            try:
                fresh = self._store.read(missing)
            except StoreUnavailableError as error:
                log.warning("%s; going on without it until it is back", error)
                self._away.set()
                threading.Thread(target=self._probe, name="store-probe", daemon=True).start()
            else:
                self._cache.update(fresh)
                return Lookup(points | fresh, frozenset())
        return Lookup(points, frozenset(missing))

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    def close(self) -> None:
        """Stop probing; the store itself stays open."""
        self._closing.set()

    def _probe(self) -> None:
        pause = _PROBE_S[0]
        while not self._closing.wait(pause):
            try:
                self._store.count()
            except Exception as error:  # whatever it is, the store is not usable yet
                log.info("still away: %s", error)
                pause = min(2 * pause, _PROBE_S[1])
            else:
                log.warning("the knowledge store is back")
                self._away.clear()
                return
