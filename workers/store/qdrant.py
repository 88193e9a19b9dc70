"""The knowledge store on a Qdrant server, or on the embedded store's process, which answers the same calls."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
import httpx
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings, Settings
from workers.store.point import (
    COLLECTION,
    POOLED,
    VECTORS,
    KnowledgePoint,
    Neighbour,
    by_version,
    check,
    from_record,
    newest_per_user,
    payload,
    point_id,
    vectors,
    wrong_width,
)

log = logging.getLogger(__name__)
T = TypeVar("T")
# Points per request. A point of 5×64 takes about 8 kB of JSON, and a server accepts 32 MB per request. 512 points are
# far below that limit, and one request takes far less than the timeout.
_BATCH = 512
_GRPC_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class QdrantStore:
    """A `KnowledgeStore` over `qdrant-client`. Reads work without `ensure`: a missing collection has no points.

    Args:
        location: a server's URL, or ":memory:" for the client's in-memory implementation (tests only).
        dim: width of the vectors.
        settings: key, protocol and timeout; the client rounds the timeout up to whole seconds.
    """

    def __init__(self, location: str, dim: int, settings: QdrantSettings | None = None) -> None:
        settings = settings or QdrantSettings()
        self._location = location
        self._dim = dim
        self._local = location == ":memory:"
        self._owns = False  # set by `ensure`: a store used only for reading must not create a collection
        if self._local:
            self._client = QdrantClient(":memory:")
        else:
            # Without `limits` the client opens a new connection per call to a server on this machine.
            self._client = QdrantClient(
                url=location, api_key=settings.api_key or None, prefer_grpc=settings.prefer_grpc,
                timeout=math.ceil(settings.timeout_s), check_compatibility=False,
                limits=httpx.Limits(max_connections=16, max_keepalive_connections=8))

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
        self._call(self._ensure)

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        """See `KnowledgeStore.upsert`. Sends one request per 512 points, with one conditional operation per version."""
        check(points, self._dim)
        newest = newest_per_user(points)
        for start in range(0, len(newest), _BATCH):
            operations = [
                qm.UpsertOperation(upsert=qm.PointsList(
                    points=[
                        qm.PointStruct(id=point_id(p.user_id), vector=vectors(p), payload=payload(p)) for p in group],
                    update_filter=qm.Filter(must=[qm.FieldCondition(key="version", range=qm.Range(lt=version))])))
                for version, group in by_version(newest[start:start + _BATCH]).items()
            ]
            self._call(partial(self._client.batch_update_points, COLLECTION, operations, wait=True))
        ids = [point_id(point.user_id) for point in points]
        held = {str(r.id): (r.payload or {})["version"] for r in self._retrieve(list(dict.fromkeys(ids)), ["version"])}
        return [held.get(id_) == point.version for id_, point in zip(ids, points, strict=True)]

    def read(self, user_ids: Collection[str]) -> dict[str, KnowledgePoint]:
        """See `KnowledgeStore.read`."""
        records = self._retrieve([point_id(user) for user in user_ids], True, with_vectors=True)
        points = [from_record(record.payload or {}, record.vector) for record in records]
        return {point.user_id: point for point in points}

    def neighbours(self, pooled: NDArray[np.float32], n: int, exclude: Collection[str] = ()) -> list[Neighbour]:
        """See `KnowledgeStore.neighbours`."""
        without = qm.Filter(must_not=[qm.HasIdCondition(has_id=[point_id(user) for user in exclude])])
        found = self._call(lambda: self._client.query_points(
            COLLECTION, query=pooled.tolist(), using=POOLED, limit=n, with_payload=True,
            query_filter=without if exclude else None))
        return [Neighbour((point.payload or {})["user"], point.score) for point in found.points]

    def count(self) -> int:
        """See `KnowledgeStore.count`."""
        try:
            return self._call(lambda: self._client.count(COLLECTION, exact=True)).count
        except _AbsentError:
            return 0

    def close(self) -> None:
        """See `KnowledgeStore.close`."""
        self._client.close()

    def _retrieve(self, ids: list[str], with_payload: Any, with_vectors: bool = False) -> list[qm.Record]:
        found: list[qm.Record] = []
        for start in range(0, len(ids), _BATCH):
            part = ids[start:start + _BATCH]
            try:
                found += self._call(partial(
                    self._client.retrieve, COLLECTION, part, with_payload=with_payload, with_vectors=with_vectors))
            except _AbsentError:
                return []
        return found

    def _ensure(self) -> None:
        if not self._client.collection_exists(COLLECTION):
            self._create()
        params = self._client.get_collection(COLLECTION).config.params.vectors
        held = params[POOLED].size if isinstance(params, dict) and POOLED in params else 0
        if held != self._dim:
            raise wrong_width(f"{COLLECTION} at {self._location}", held, self._dim)
        if not self._local:
            # Conditional writes name their points by id and need no index. But a server in strict mode refuses a filter
            # on a field without an index.
            self._client.create_payload_index(COLLECTION, "version", qm.PayloadSchemaType.INTEGER)

    def _create(self) -> None:
        try:
            self._client.create_collection(COLLECTION, vectors_config={
                VECTORS: qm.VectorParams(
                    size=self._dim, distance=qm.Distance.DOT, datatype=qm.Datatype.FLOAT16,
                    multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
                    hnsw_config=qm.HnswConfigDiff(m=0)),  # only read by id, so an index would be useless
                POOLED: qm.VectorParams(size=self._dim, distance=qm.Distance.COSINE),
            })
        except UnexpectedResponse as error:
            if error.status_code != 409:  # another worker was first
                raise
        except grpc.RpcError as error:
            if _code(error) is not grpc.StatusCode.ALREADY_EXISTS:
                raise

    def _call(self, action: Callable[[], T], recreate: bool = True) -> T:
        """Run one call. If the collection has disappeared (a server with a new disk), it is created again once."""
        try:
            return action()
        except ResponseHandlingException as error:
            raise StoreUnavailableError(f"the knowledge store at {self._location} does not answer: {error.source!r}"
                                        ) from error
        except UnexpectedResponse as error:
            status, refused = error.status_code or 0, error
            if status == 404 and recreate:
                return self._recreated(action, error)
            if status >= 500 or status == 429:
                raise StoreUnavailableError(f"the knowledge store at {self._location} fails: {refused}") from error
            raise FreshetError(_refusal(self._location, status, str(refused))) from error
        except grpc.RpcError as error:
            code = _code(error)
            if code is grpc.StatusCode.NOT_FOUND and recreate:
                return self._recreated(action, error)
            if code in _GRPC_AWAY:
                raise StoreUnavailableError(f"the knowledge store at {self._location} does not answer: {code}"
                                            ) from error
            raise FreshetError(_refusal(self._location, 0, str(error))) from error

    def _recreated(self, action: Callable[[], T], error: Exception) -> T:
        if not self._owns:
            raise _AbsentError(f"{COLLECTION} does not exist at {self._location} yet") from error
        self._call(self._ensure, recreate=False)
        return self._call(action, recreate=False)


class _AbsentError(FreshetError):
    """The collection does not exist, and this store must not create it."""


def _code(error: grpc.RpcError) -> Any:
    """Return the status of a failed call. Errors of calls have `code`, although their base class does not declare it.
    """
    code = getattr(error, "code", None)
    return code() if callable(code) else None


def _refusal(location: str, status: int, text: str) -> str:
    if status in (401, 403):
        return f"the knowledge store at {location} refuses the key; set FRESHET_QDRANT_API_KEY"
    return f"the knowledge store at {location} refuses a request: {text}"
