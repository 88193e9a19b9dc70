"""The knowledge store on a Qdrant server, or on the embedded store's process, which answers the same calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models as qm

from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings, Settings
from schemas.watch.instruments import counter, histogram
from workers.store.answers import (
    NO_QDRANT,
    AbsentError,
    StoreRefusedError,
    TakenError,
    address,
    asked,
    check_version,
    connect,
    without_password,
)
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
T = TypeVar("T")
# Points per request. A point of 5×64 takes about 8 kB of JSON, and a server accepts 32 MB per request. 512 points are
# far below that limit, and one request takes far less than the timeout.
_BATCH = 512
_CONNECTIONS = 16
_SECONDS, _ERRORS = histogram("freshet_store_request_seconds"), counter("freshet_store_errors_total")


class QdrantStore:
    """A `KnowledgeStore` over `qdrant-client`. Reads work without `ensure`: a missing collection has no points.

    Args:
        location: a server's URL, or ":memory:" for the client's in-memory implementation (tests only).
        dim: width of the vectors.
        settings: key, protocol and timeout; the client rounds the timeout up to whole seconds.

    Raises:
        FreshetError: URL or key cannot be used.
    """

    def __init__(self, location: str, dim: int, settings: QdrantSettings | None = None) -> None:
        self._location = location = address(location)
        self._dim = dim
        self._local = location == ":memory:"
        self._owns = False  # set by `ensure`: a store used only for reading must not create a collection
        self._ensured = False  # of the server that answered last
        self._client = connect(location, settings or QdrantSettings(), _CONNECTIONS)

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
        store = cls(settings.qdrant.url, dim, settings.qdrant)
        try:
            store.ensure()
        except StoreUnavailableError as error:
            log.warning("%s; continuing, it may come back", error)
        return store

    def ensure(self) -> None:
        """See `KnowledgeStore.ensure`."""
        self._owns = True
        self._ensure()

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        """See `KnowledgeStore.upsert`. Sends one request per 512 points, with one conditional operation per version."""
        check(points, self._dim)
        if self._owns and not self._ensured:  # it was away: another server may be there now, an older one, too
            self.ensure()
        newest = newest_per_user(points)
        for start in range(0, len(newest), _BATCH):
            operations = [
                qm.UpsertOperation(upsert=qm.PointsList(
                    points=[
                        qm.PointStruct(id=point_id(p.user_id), vector=vectors(p), payload=payload(p)) for p in group],
                    update_filter=qm.Filter(must=[qm.FieldCondition(key="version", range=qm.Range(lt=version))])))
                for version, group in by_version(newest[start:start + _BATCH]).items()
            ]
            self._call("write", partial(self._client.batch_update_points, COLLECTION, operations, wait=True))
        ids = dict.fromkeys(point_id(point.user_id) for point in points)
        return written(points, {
            str(record.id): (record.payload or {}).get("version") for record in self._retrieve(list(ids), ["version"])})

    def read(self, user_ids: Collection[str]) -> dict[str, KnowledgePoint]:
        """See `KnowledgeStore.read`."""
        return self.look(user_ids).points

    def look(self, user_ids: Collection[str]) -> Found:
        """See `KnowledgeStore.look`."""
        records = self._retrieve([point_id(user) for user in user_ids], True, with_vectors=True)
        return gather(user_ids, ((str(r.id), r.payload, r.vector) for r in records), self._dim)

    def discard(self, damaged: Collection[DamagedPoint]) -> None:
        """See `KnowledgeStore.discard`."""
        lost = [point_id(point.user_id) for point in damaged if point.version is None]
        if lost:
            self._delete(qm.PointIdsList(points=list(lost)))
        for version in {point.version for point in damaged if point.version is not None}:
            self._delete(qm.FilterSelector(filter=qm.Filter(must=[
                qm.HasIdCondition(has_id=[point_id(p.user_id) for p in damaged if p.version == version]),
                qm.FieldCondition(key="version", match=qm.MatchValue(value=version))])))

    def neighbours(self, pooled: NDArray[np.float32], n: int, exclude: Collection[str] = ()) -> list[Neighbour]:
        """See `KnowledgeStore.neighbours`."""
        without = qm.Filter(must_not=[qm.HasIdCondition(has_id=[point_id(user) for user in exclude])])
        found = self._call("search", lambda: self._client.query_points(
            COLLECTION, query=pooled.tolist(), using=POOLED, limit=n, with_payload=True,
            query_filter=without if exclude else None))
        return named_neighbours((point.payload, point.score) for point in found.points)

    def count(self) -> int:
        """See `KnowledgeStore.count`."""
        try:
            return self._call("count", lambda: self._client.count(COLLECTION, exact=True)).count
        except AbsentError:
            return 0

    def close(self) -> None:
        """See `KnowledgeStore.close`."""
        self._client.close()

    def _retrieve(self, ids: list[str], with_payload: Any, with_vectors: bool = False) -> list[qm.Record]:
        found: list[qm.Record] = []
        for start in range(0, len(ids), _BATCH):
            part = ids[start:start + _BATCH]
            try:
                found += self._call("read", partial(
                    self._client.retrieve, COLLECTION, part, with_payload=with_payload, with_vectors=with_vectors))
            except AbsentError:
                return []
        return found

    def _delete(self, selector: qm.PointIdsList | qm.FilterSelector) -> None:
        self._call("delete", partial(self._client.delete, COLLECTION, selector, wait=True))

    def _ensure(self) -> None:
        try:
            asked(self._location, self._prepare)
        except StoreRefusedError as error:  # no record is to blame
            raise FreshetError(f"the collection {COLLECTION} cannot be used: {error}") from error
        self._ensured = True

    def _prepare(self) -> None:
        if not self._local:
            self._identify()
        if not self._client.collection_exists(COLLECTION):
            self._create()
        params = self._client.get_collection(COLLECTION).config.params.vectors
        held = params[POOLED].size if isinstance(params, dict) and POOLED in params else 0
        if held != self._dim:
            raise wrong_width(f"{COLLECTION} at {without_password(self._location)}", held, self._dim)
        if not self._local:
            # Conditional writes name their points by id and need no index. But a server in strict mode refuses a filter
            # on a field without an index.
            self._client.create_payload_index(COLLECTION, "version", qm.PayloadSchemaType.INTEGER)

    def identify(self) -> None:
        """Ask the server what it is.

        Raises:
            StoreUnavailableError: it does not answer, or not as Qdrant does.
            FreshetError: it is an older Qdrant, or another server.
        """
        asked(self._location, self._identify)

    def _identify(self) -> None:
        try:
            version = asked(self._location, self._client.info).version
        except AbsentError:  # Qdrant says its version at its root
            raise FreshetError(f"the server at {without_password(self._location)} answers 404, {NO_QDRANT}") from None
        check_version(self._location, version)

    def _create(self) -> None:
        try:
            asked(self._location, lambda: self._client.create_collection(COLLECTION, vectors_config={
                VECTORS: qm.VectorParams(
                    size=self._dim, distance=qm.Distance.DOT, datatype=qm.Datatype.FLOAT16,
                    multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
                    hnsw_config=qm.HnswConfigDiff(m=0)),  # only read by id, so an index would be useless
                POOLED: qm.VectorParams(size=self._dim, distance=qm.Distance.COSINE),
            }))
        except TakenError:
            log.info("another worker created %s first", COLLECTION)

    def _call(self, operation: str, action: Callable[[], T], recreate: bool = True) -> T:
        """Run one call. If the collection has disappeared (a server with a new disk), it is created again once.

        Args:
            operation: what it is called in the metrics.
        """
        try:
            with _SECONDS.labels(operation).time():
                return asked(self._location, action)
        except AbsentError as error:
            if not recreate:
                raise
            if not self._owns:
                raise AbsentError(
                    f"{COLLECTION} does not exist at {without_password(self._location)} yet") from error
            self._ensure()
            return self._call(operation, action, recreate=False)
        except StoreUnavailableError:
            self._ensured = False
            _ERRORS.labels(operation, "unavailable").inc()
            raise
        except FreshetError as error:
            _ERRORS.labels(operation, "refused" if isinstance(error, StoreRefusedError) else "other").inc()
            raise
