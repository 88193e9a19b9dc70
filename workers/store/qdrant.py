"""The knowledge store on a Qdrant server, or on the embedded store's process, which answers the same calls."""

from __future__ import annotations

import logging
from collections.abc import Collection as Several
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models as qm

from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings, Settings
from workers.store.collection import BATCH, Collection
from workers.store.point import (
    COLLECTION,
    POOLED,
    VECTORS,
    DamagedPoint,
    Found,
    KnowledgePoint,
    Neighbour,
    by_version,
    check,
    gather,
    named_neighbours,
    newest_per_user,
    payload,
    point_id,
    vectors,
    written,
    wrong_width,
)

log = logging.getLogger(__name__)


class QdrantStore(Collection):
    """A `KnowledgeStore` over `qdrant-client`. Reads work without `ensure`: a missing collection has no points.

    Args:
        location: a server's URL, or ":memory:" for the client's in-memory implementation (tests only).
        dim: width of the vectors.
        settings: key, protocol and timeout; the client rounds the timeout up to whole seconds.
        collection: its name on the server.

    Raises:
        FreshetError: URL or key cannot be used.
    """

    def __init__(
        self, location: str, dim: int, settings: QdrantSettings | None = None, collection: str = COLLECTION,
    ) -> None:
        self._dim = dim
        super().__init__(location, collection, {
            VECTORS: qm.VectorParams(
                size=dim, distance=qm.Distance.DOT, datatype=qm.Datatype.FLOAT16,
                multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
                hnsw_config=qm.HnswConfigDiff(m=0)),  # only read by id, so an index would be useless
            POOLED: qm.VectorParams(size=dim, distance=qm.Distance.COSINE),
        }, POOLED, wrong_width, settings)

    @classmethod
    def at(cls, settings: Settings, dim: int) -> QdrantStore:
        """Return the store that the settings name, without asking it anything."""
        return cls(settings.qdrant.url, dim, settings.qdrant, settings.kafka.full(COLLECTION))

    @classmethod
    def of(cls, settings: Settings, dim: int) -> QdrantStore:
        """Return the store that the settings name, and create its collection. An unavailable store is only logged.

        Raises:
            FreshetError: the settings name no store, or its collection has another width.
        """
        if not settings.qdrant.url:
            raise FreshetError(
                "no knowledge store: set FRESHET_QDRANT_URL=http://host:6333, or let `freshet up` start the embedded "
                "one")
        store = cls.at(settings, dim)
        try:
            store.ensure()
        except StoreUnavailableError as error:
            log.warning("%s; continuing, it may come back", error)
        return store

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        """See `KnowledgeStore.upsert`. Sends one request per 512 points, with one conditional operation per version."""
        check(points, self._dim)
        newest = newest_per_user(points)
        for start in range(0, len(newest), BATCH):
            self._write({
                version: [qm.PointStruct(id=point_id(p.user_id), vector=vectors(p), payload=payload(p)) for p in group]
                for version, group in by_version(newest[start:start + BATCH]).items()})
        return written(points, self._versions(list(dict.fromkeys(point_id(point.user_id) for point in points))))

    def read(self, user_ids: Several[str]) -> dict[str, KnowledgePoint]:
        """See `KnowledgeStore.read`."""
        return self.look(user_ids).points

    def look(self, user_ids: Several[str]) -> Found:
        """See `KnowledgeStore.look`."""
        records = self._retrieve([point_id(user) for user in user_ids], True, with_vectors=True)
        return gather(user_ids, ((str(r.id), r.payload, r.vector) for r in records), self._dim)

    def discard(self, damaged: Several[DamagedPoint]) -> None:
        """See `KnowledgeStore.discard`."""
        lost = [point_id(point.user_id) for point in damaged if point.version is None]
        if lost:
            self._delete(qm.PointIdsList(points=list(lost)))
        for version in {point.version for point in damaged if point.version is not None}:
            self._delete(qm.FilterSelector(filter=qm.Filter(must=[
                qm.HasIdCondition(has_id=[point_id(p.user_id) for p in damaged if p.version == version]),
                qm.FieldCondition(key="version", match=qm.MatchValue(value=version))])))

    def holds(self, user_ids: Several[str]) -> set[str]:
        """Return the users who have a point, sound or damaged."""
        ids = {point_id(user): user for user in user_ids}
        return {ids[id_] for id_ in self._versions(list(ids))}

    def erase(self, user_ids: Several[str]) -> set[str]:
        """See `KnowledgeStore.erase`."""
        held = self.holds(user_ids)
        if held:
            self._delete(qm.PointIdsList(points=[point_id(user) for user in held]))
        return held

    def neighbours(self, pooled: NDArray[np.float32], n: int, exclude: Several[str] = ()) -> list[Neighbour]:
        """See `KnowledgeStore.neighbours`."""
        found = self._nearest(pooled.tolist(), n, [point_id(user) for user in exclude])
        return named_neighbours((point.payload, point.score) for point in found)
