"""Banks of user and item embeddings in Qdrant: the collections GRASP's ten nearest others are looked up in.

With `qdrant.url` they are collections of that server, else shards of Qdrant's engine in this process. Searches are
exact (no graph is built), so that a figure does not depend on where its neighbours were looked up. Measured, ten
nearest of 22,000 random vectors of 128, one thread of a busy machine: 1.0 to 1.9 s per 1,000 queries in the engine, all
neighbours those of `models.banks.ExactBank`, which takes 0.2 s. A moment's description takes 30 ms, its neighbours 1.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc  # type: ignore[import-untyped]
import httpx
import qdrant_edge as qe
import torch
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from torch import Tensor

from models.banks import Banks
from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings, Settings

T = TypeVar("T")
_VECTOR = "embedding"
_PUT, _ASK = 1_000, 128  # points and queries per request: 3 MB of JSON, 0.3 s of a server's time
_INDEX_ABOVE_KB = 2_000_000  # of vectors; below it the embedded engine builds no graph


def banks(settings: Settings) -> Banks:
    """Return what makes banks in Qdrant, as the settings say."""
    if settings.qdrant.url:
        return lambda name, vectors: ServerBank(settings.qdrant.url, name, vectors, settings.qdrant)
    return EdgeBank


class EdgeBank:
    """A `Bank` in Qdrant's engine in this process.

    It is made anew (0.6 s for 22,000 vectors) in a folder for temporary files and goes with the object.

    Args:
        name: of the bank.
        vectors: (b, w) finite; a vector's row is its point's id.
    """

    def __init__(self, name: str, vectors: Tensor) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"freshet-bank-{name}-")
        self._shard = qe.EdgeShard.create(str(Path(self._folder.name) / "shard"), qe.EdgeConfig(
            vectors={_VECTOR: qe.EdgeVectorParams(vectors.shape[1], qe.Distance.Cosine)},
            optimizers=qe.EdgeOptimizersConfig(indexing_threshold=_INDEX_ABOVE_KB)))
        for at in range(0, len(vectors), _PUT):
            self._shard.update(qe.UpdateOperation.upsert_points([
                qe.Point(at + row, {_VECTOR: vector}, {})
                for row, vector in enumerate(vectors[at : at + _PUT].tolist())]))

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """See `Bank.nearest`."""
        def ask(part: list[list[float]], itself: list[int]) -> list[list[int]]:
            found = self._shard.query_batch(qe.QueryBatchRequest([
                qe.QueryRequest(
                    limit=n, query=qe.Query.Nearest(vector, using=_VECTOR), params=qe.SearchParams(exact=True),
                    filter=qe.Filter(must_not=[qe.HasIdCondition({row})]) if row >= 0 else None,
                    with_payload=False, with_vector=False)
                for vector, row in zip(part, itself, strict=True)]))
            return [[int(point.id) for point in points] for points in found]

        return _asked(query, n, own, ask)


class ServerBank:
    """A `Bank` in a Qdrant server, the collection `freshet_NAME_HASH`.

    The hash is of the vectors: a bank that is there already is used as it is, by any number of processes. Collections
    stay on the server; they may be deleted at any time that nothing runs.

    Args:
        location: the server's URL, or ":memory:" for the client's own imitation (tests only).
        name: of the bank.
        vectors: (b, w) finite; a vector's row is its point's id.
        settings: key, protocol and time-out.

    Raises:
        StoreUnavailableError: the server does not answer.
        FreshetError: it refuses.
    """

    def __init__(self, location: str, name: str, vectors: Tensor, settings: QdrantSettings | None = None) -> None:
        settings = settings or QdrantSettings()
        values = vectors.contiguous().float().cpu()
        digest = hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()
        self.collection = f"freshet_{name}_{digest[:16]}"
        self._location = location
        self._client = QdrantClient(":memory:") if location == ":memory:" else QdrantClient(
            url=location, api_key=settings.api_key or None, prefer_grpc=settings.prefer_grpc,
            timeout=math.ceil(settings.timeout_s), check_compatibility=False,
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=4))  # as `QdrantStore`: connections stay
        self._fill(values)

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """See `Bank.nearest`."""
        def ask(part: list[list[float]], itself: list[int]) -> list[list[int]]:
            found = self._call(lambda: self._client.query_batch_points(self.collection, [
                qm.QueryRequest(
                    query=vector, limit=n, params=qm.SearchParams(exact=True), with_payload=False, with_vector=False,
                    filter=qm.Filter(must_not=[qm.HasIdCondition(has_id=[row])]) if row >= 0 else None)
                for vector, row in zip(part, itself, strict=True)]))
            return [[int(point.id) for point in answer.points] for answer in found]

        return _asked(query, n, own, ask)

    def _fill(self, values: Tensor) -> None:
        if not self._call(lambda: self._client.collection_exists(self.collection)):
            self._call(lambda: self._create(values.shape[1]))
        if self._call(lambda: self._client.count(self.collection, exact=True)).count == len(values):
            return
        for at in range(0, len(values), _PUT):  # two processes at once write the same
            points = [qm.PointStruct(id=at + row, vector=vector, payload={})
                      for row, vector in enumerate(values[at : at + _PUT].tolist())]
            self._call(lambda points=points: self._client.upsert(  # type: ignore[misc]
                self.collection, points, wait=True))

    def _create(self, width: int) -> None:
        try:
            self._client.create_collection(
                self.collection, vectors_config=qm.VectorParams(
                    size=width, distance=qm.Distance.COSINE, hnsw_config=qm.HnswConfigDiff(m=0)))  # searched exactly
        except UnexpectedResponse as error:
            if error.status_code != 409:  # another process was first
                raise
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise

    def _call(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except ResponseHandlingException as error:
            raise StoreUnavailableError(f"Qdrant at {self._location} does not answer: {error.source!r}") from error
        except (UnexpectedResponse, grpc.RpcError) as error:
            raise FreshetError(
                f"Qdrant at {self._location} cannot keep the bank {self.collection}: {error}; check FRESHET_QDRANT_URL "
                "and FRESHET_QDRANT_API_KEY, or leave FRESHET_QDRANT_URL empty for the engine in this process"
            ) from error


def _asked(
    query: Tensor, n: int, own: Tensor, ask: Callable[[list[list[float]], list[int]], list[list[int]]],
) -> Tensor:
    """Return rows (q, n) of what `ask` finds for queries and their own rows, some at a time; −1 = no more."""
    rows = torch.full((len(query), n), -1, dtype=torch.int64)
    for at in range(0, len(query), _ASK):
        found = ask(query[at : at + _ASK].float().cpu().tolist(), own[at : at + _ASK].tolist())
        for row, points in enumerate(found, at):
            rows[row, : len(points)] = torch.tensor(points, dtype=torch.int64)
    return rows
