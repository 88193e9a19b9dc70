"""Banks of user and item embeddings in Qdrant: the collections in which GRASP looks up the ten nearest others.

With `qdrant.url` set, a bank is a collection on that server (or in the embedded store's process). Otherwise it is a
shard of Qdrant's engine in this process. Searches are exact (no graph is built), so that figures do not depend on where
the neighbours were looked up.

Measured with the ten nearest of 22,000 random vectors of width 128, on one thread of a busy machine: 1.0 to 1.9 s per
1,000 queries in the engine, 2.7 s through the store's process. All neighbours equal those of
`models.compute.neighbours.ExactBank`, which takes 0.2 s. Generating a description takes 30 s per 1,000 in comparison.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from qdrant_client import models as qm
from torch import Tensor

from models.compute.neighbours import Banks
from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings, Settings
from workers.store.answers import AbsentError, TakenError, asked, connect
from workers.store.banks.shard import PREFIX, BankShard

T = TypeVar("T")
Question = tuple[list[float], int, tuple[int, ...]]  # vector, number of neighbours, excluded ids
_CONNECTIONS = 8
_PUT, _ASK = 1_000, 128  # points and queries per request: 3 MB of JSON, 0.3 s of a server's time


def banks(settings: Settings) -> Banks:
    """Return the function that creates banks in Qdrant, according to the settings."""
    if settings.qdrant.url:
        return lambda name, vectors: ServerBank(
            settings.qdrant.url, name, vectors, settings.qdrant, settings.kafka.full)
    return EdgeBank


class EdgeBank:
    """A `Bank` in Qdrant's engine in this process, deleted with the object. Building takes 0.6 s for 22,000 vectors.

    Args:
        name: name of the bank.
        vectors: (b, w) finite; a vector's row is the id of its point.
    """

    def __init__(self, name: str, vectors: Tensor) -> None:
        self._shard = BankShard(name, vectors.shape[1])
        for at in range(0, len(vectors), _PUT):
            self._shard.put(list(enumerate(vectors[at : at + _PUT].tolist(), at)))

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """See `Bank.nearest`."""
        return _search(query, n, own, lambda queries: [
            [id_ for id_, _ in points] for points in self._shard.nearest(queries)])


class ServerBank:
    """A `Bank` on a Qdrant server, in the collection `freshet_NAME_HASH`, after the prefix of all names.

    The hash is computed from the vectors. So an existing bank can be used unchanged, by any number of processes.
    Collections stay on the server and may be deleted at any time; a missing one is written again. Nothing is sent
    before the first query, so a worker can start while its store is unavailable.

    Args:
        location: the server's URL, or ":memory:" for the client's in-memory implementation (tests only).
        name: name of the bank.
        vectors: (b, w) finite; a vector's row is the id of its point.
        settings: key, protocol and timeout.
        full: returns how a collection is called on the server.

    Raises:
        FreshetError: URL or key cannot be used.
    """

    def __init__(
        self, location: str, name: str, vectors: Tensor, settings: QdrantSettings | None = None,
        full: Callable[[str], str] = str,
    ) -> None:
        values = vectors.contiguous().float().cpu()
        digest = hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()
        self.collection = full(f"{PREFIX}{name}_{digest[:16]}")
        self._location = location
        self._client = connect(location, settings or QdrantSettings(), _CONNECTIONS)
        self._values, self._ready = values, False

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """See `Bank.nearest`.

        Raises:
            StoreUnavailableError: the server does not answer or is busy; ask again.
            StoreRefusedError: it refuses the query, such as one that is not finite.
            FreshetError: it refuses the bank, or the key.
        """
        if not self._ready:
            self._write()
            self._ready = True

        def ask(queries: list[Question]) -> list[list[int]]:
            found = self._call(lambda: self._client.query_batch_points(self.collection, [
                qm.QueryRequest(
                    query=vector, limit=limit, params=qm.SearchParams(exact=True), with_payload=False,
                    with_vector=False,
                    filter=qm.Filter(must_not=[qm.HasIdCondition(has_id=list(without))]) if without else None)
                for vector, limit, without in queries]))
            return [[int(point.id) for point in answer.points] for answer in found]

        return _search(query, n, own, ask)

    def _fill(self) -> None:
        if not self._client.collection_exists(self.collection):
            self._create(self._values.shape[1])
        if self._client.count(self.collection, exact=True).count == len(self._values):
            return
        for at in range(0, len(self._values), _PUT):  # two processes may write the same at once
            self._client.upsert(self.collection, [
                qm.PointStruct(id=id_, vector=vector, payload={})
                for id_, vector in enumerate(self._values[at : at + _PUT].tolist(), at)], wait=True)

    def _create(self, width: int) -> None:
        with contextlib.suppress(TakenError):  # another process was first
            asked(self._location, lambda: self._client.create_collection(
                self.collection, vectors_config=qm.VectorParams(
                    size=width, distance=qm.Distance.COSINE, hnsw_config=qm.HnswConfigDiff(m=0))))  # search is exact

    def _call(self, action: Callable[[], T], rewrite: bool = True) -> T:
        """Run one call. If the collection has disappeared, it is written again once."""
        try:
            return asked(self._location, action)
        except AbsentError:
            if not rewrite:
                raise
            self._write()
            return self._call(action, rewrite=False)

    def _write(self) -> None:
        try:
            self._call(self._fill, rewrite=False)
        except StoreUnavailableError:
            raise
        except FreshetError as error:  # also a refused request: the vectors are the model's, not a record's
            raise FreshetError(
                f"the bank {self.collection} cannot be kept: {error}; check FRESHET_QDRANT_URL and "
                "FRESHET_QDRANT_API_KEY, or leave FRESHET_QDRANT_URL empty for the engine in this process") from error


def _search(query: Tensor, n: int, own: Tensor, ask: Callable[[list[Question]], list[list[int]]]) -> Tensor:
    """Return the rows (q, n) that `ask` finds in batches of queries, without each query's own row; −1 = no more."""
    rows = torch.full((len(query), n), -1, dtype=torch.int64)
    for at in range(0, len(query), _ASK):
        part = query[at : at + _ASK].float().cpu().tolist(), own[at : at + _ASK].tolist()
        found = ask([(vector, n, (row,) if row >= 0 else ()) for vector, row in zip(*part, strict=True)])
        for row, points in enumerate(found, at):
            rows[row, : len(points)] = torch.tensor(points, dtype=torch.int64)
    return rows
