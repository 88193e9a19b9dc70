"""Banks of user and item embeddings in Qdrant: the collections GRASP's ten nearest others are looked up in.

With `qdrant.url` they are collections of that server (or of the store's process), else shards of Qdrant's engine in
this process. Searches are exact (no graph is built), so that a figure does not depend on where its neighbours were
looked up. Measured, ten nearest of 22,000 random vectors of 128, one thread of a busy machine: 1.0 to 1.9 s per 1,000
queries in the engine, 2.7 s through the store's process; all neighbours are those of
`models.compute.neighbours.ExactBank`, which takes 0.2 s. Beside them a moment's description takes 30 s per 1,000.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TypeVar

import grpc  # type: ignore[import-untyped]
import httpx
import torch
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from torch import Tensor

from models.compute.neighbours import Banks
from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings, Settings
from workers.store.banks.shard import PREFIX, BankShard

T = TypeVar("T")
Question = tuple[list[float], int, tuple[int, ...]]  # vector, how many, ids left out
_PUT, _ASK = 1_000, 128  # points and queries per request: 3 MB of JSON, 0.3 s of a server's time


def banks(settings: Settings) -> Banks:
    """Return what makes banks in Qdrant, as the settings say."""
    if settings.qdrant.url:
        return lambda name, vectors: ServerBank(settings.qdrant.url, name, vectors, settings.qdrant)
    return EdgeBank


class EdgeBank:
    """A `Bank` in Qdrant's engine in this process; made anew (0.6 s for 22,000 vectors) and gone with the object.

    Args:
        name: of the bank.
        vectors: (b, w) finite; a vector's row is its point's id.
    """

    def __init__(self, name: str, vectors: Tensor) -> None:
        self._shard = BankShard(name, vectors.shape[1])
        for at in range(0, len(vectors), _PUT):
            self._shard.put(list(enumerate(vectors[at : at + _PUT].tolist(), at)))

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """See `Bank.nearest`."""
        return _asked(query, n, own, lambda queries: [
            [id_ for id_, _ in points] for points in self._shard.nearest(queries)])


class ServerBank:
    """A `Bank` in a Qdrant server, the collection `freshet_NAME_HASH`.

    The hash is of the vectors: a bank that is there already is used as it is, by any number of processes. Collections
    stay on the server and may be deleted at any time; one that is missed is written anew.

    Args:
        location: the server's URL, or ":memory:" for the client's own imitation (tests only).
        name: of the bank.
        vectors: (b, w) finite; a vector's row is its point's id.
        settings: key, protocol and time-out.

    Nothing is sent before the first question: a worker starts while its store is away.
    """

    def __init__(self, location: str, name: str, vectors: Tensor, settings: QdrantSettings | None = None) -> None:
        settings = settings or QdrantSettings()
        values = vectors.contiguous().float().cpu()
        digest = hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()
        self.collection = f"{PREFIX}{name}_{digest[:16]}"
        self._location = location
        self._client = QdrantClient(":memory:") if location == ":memory:" else QdrantClient(
            url=location, api_key=settings.api_key or None, prefer_grpc=settings.prefer_grpc,
            timeout=math.ceil(settings.timeout_s), check_compatibility=False,
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=4))  # as `QdrantStore`: connections stay
        self._values, self._ready = values, False

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """See `Bank.nearest`.

        Raises:
            StoreUnavailableError: the server does not answer; ask again.
            FreshetError: it refuses.
        """
        if not self._ready:
            self._call(self._fill)
            self._ready = True

        def ask(queries: list[Question]) -> list[list[int]]:
            found = self._call(lambda: self._client.query_batch_points(self.collection, [
                qm.QueryRequest(
                    query=vector, limit=limit, params=qm.SearchParams(exact=True), with_payload=False,
                    with_vector=False,
                    filter=qm.Filter(must_not=[qm.HasIdCondition(has_id=list(without))]) if without else None)
                for vector, limit, without in queries]))
            return [[int(point.id) for point in answer.points] for answer in found]

        return _asked(query, n, own, ask)

    def _fill(self) -> None:
        if not self._client.collection_exists(self.collection):
            self._create(self._values.shape[1])
        if self._client.count(self.collection, exact=True).count == len(self._values):
            return
        for at in range(0, len(self._values), _PUT):  # two processes at once write the same
            self._client.upsert(self.collection, [
                qm.PointStruct(id=id_, vector=vector, payload={})
                for id_, vector in enumerate(self._values[at : at + _PUT].tolist(), at)], wait=True)

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

    def _call(self, action: Callable[[], T], mend: bool = True) -> T:
        """Run one call; a collection that has vanished is written anew once."""
        try:
            return action()
        except ResponseHandlingException as error:
            raise StoreUnavailableError(f"Qdrant at {self._location} does not answer: {error.source!r}") from error
        except (UnexpectedResponse, grpc.RpcError) as error:
            gone = (error.status_code == 404 if isinstance(error, UnexpectedResponse)
                    else error.code() is grpc.StatusCode.NOT_FOUND)
            if gone and mend:
                self._call(self._fill, mend=False)
                return self._call(action, mend=False)
            raise FreshetError(
                f"Qdrant at {self._location} cannot keep the bank {self.collection}: {error}; check FRESHET_QDRANT_URL "
                "and FRESHET_QDRANT_API_KEY, or leave FRESHET_QDRANT_URL empty for the engine in this process"
            ) from error


def _asked(query: Tensor, n: int, own: Tensor, ask: Callable[[list[Question]], list[list[int]]]) -> Tensor:
    """Return rows (q, n) of what `ask` finds for queries without their own rows, some at a time; −1 = no more."""
    rows = torch.full((len(query), n), -1, dtype=torch.int64)
    for at in range(0, len(query), _ASK):
        part = query[at : at + _ASK].float().cpu().tolist(), own[at : at + _ASK].tolist()
        found = ask([(vector, n, (row,) if row >= 0 else ()) for vector, row in zip(*part, strict=True)])
        for row, points in enumerate(found, at):
            rows[row, : len(points)] = torch.tensor(points, dtype=torch.int64)
    return rows
