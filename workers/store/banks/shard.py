"""A bank in Qdrant's engine in this process, with plain Python types, and the set of banks of the store's process."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as qe
from cachetools import LRUCache

log = logging.getLogger(__name__)
PREFIX = "freshet_"  # of the names of collections that are banks
_VECTOR = "embedding"
_INDEX_ABOVE_KB = 2_000_000  # size of vectors below which the engine builds no graph
_WIDEST = 65_536  # as a Qdrant server
_KEPT = 4  # banks per store process, about 140 MB of disk each: those of the current and the previous version


class BankShard:
    """Vectors by id, searched by cosine, in a temporary folder that is deleted with the object.

    Safe to use from several threads.

    Args:
        name: name of the bank.
        width: width of the vectors.
    """

    def __init__(self, name: str, width: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix=f"freshet-bank-{name}-")
        self._lock = threading.Lock()
        self._shard = qe.EdgeShard.create(str(Path(self.folder.name) / "shard"), qe.EdgeConfig(
            vectors={_VECTOR: qe.EdgeVectorParams(width, qe.Distance.Cosine)},
            optimizers=qe.EdgeOptimizersConfig(indexing_threshold=_INDEX_ABOVE_KB)))

    def put(self, points: Sequence[tuple[int, list[float]]]) -> None:
        """Write (id, vector) pairs."""
        made = [qe.Point(id_, {_VECTOR: vector}, {}) for id_, vector in points]
        with self._lock:
            self._shard.update(qe.UpdateOperation.upsert_points(made))

    def nearest(self, queries: Sequence[tuple[list[float], int, Collection[int]]]) -> list[list[tuple[int, float]]]:
        """Return the (id, cosine) pairs nearest to each query, best first.

        Args:
            queries: (vector, number of neighbours, excluded ids).
        """
        found = self._shard.query_batch(qe.QueryBatchRequest([
            qe.QueryRequest(
                limit=n, query=qe.Query.Nearest(vector, using=_VECTOR), params=qe.SearchParams(exact=True),
                filter=qe.Filter(must_not=[qe.HasIdCondition(set(without))]) if without else None,
                with_payload=False, with_vector=False)
            for vector, n, without in queries]))
        return [[(int(point.id), float(point.score)) for point in points] for points in found]

    def count(self) -> int:
        """Return the number of vectors."""
        return int(self._shard.count(qe.CountRequest()))


class _Kept(LRUCache[str, BankShard]):
    """The banks by collection; the longest unused one makes room."""

    def popitem(self) -> tuple[str, BankShard]:
        """See `LRUCache.popitem`."""
        name, bank = super().popitem()
        log.info("the bank %s makes room", name)
        return name, bank


class BankShards:
    """The banks of the store's process, by collection.

    They last as long as the process. If there are too many, the least recently used one is deleted. A client that
    queries a deleted bank gets an error and writes it again (`workers.store.banks.bank.ServerBank`). Calls run in
    threads, so that reads of knowledge do not wait.
    """

    def __init__(self) -> None:
        self._banks = _Kept(_KEPT)

    def has(self, name: str) -> bool:
        """Return whether the collection exists."""
        return name in self._banks

    async def create(self, name: str, asked: dict[str, Any]) -> None:
        """Answer `PUT /collections/NAME`."""
        width = int(asked["vectors"]["size"])
        if not 1 <= width <= _WIDEST:
            raise ValueError(f"vectors of width {width}; 1 to {_WIDEST} are possible")
        made = await asyncio.to_thread(BankShard, name, width)
        if name not in self._banks:  # else made meanwhile
            self._banks[name] = made

    async def count(self, name: str) -> dict[str, int]:
        """Answer `POST …/points/count`."""
        return {"count": self._banks[name].count()}

    async def put(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer `PUT …/points`."""
        points = [(int(point["id"]), _flat(point["vector"])) for point in asked["points"]]
        await asyncio.to_thread(self._banks[name].put, points)
        return {"operation_id": 0, "status": "completed"}

    async def query(self, name: str, searches: Sequence[tuple[list[float], int, Collection[int]]]) -> list[Any]:
        """Answer `POST …/points/query/batch`."""
        found = await asyncio.to_thread(self._banks[name].nearest, searches)
        return [{"points": [{"id": id_, "version": 0, "score": score} for id_, score in points]} for points in found]


def _flat(vector: Any) -> list[float]:
    """Return a vector's numbers. Of an empty list within a list the engine panics."""
    if not isinstance(vector, list) or not all(type(number) in (int, float) for number in vector):
        raise ValueError("a vector is a list of numbers")
    return vector
