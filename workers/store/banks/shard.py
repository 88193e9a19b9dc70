"""A bank in Qdrant's engine in this process, in plain terms, and the store's process serving several of them."""

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
PREFIX = "freshet_"  # of the collections that are banks
_VECTOR = "embedding"
_INDEX_ABOVE_KB = 2_000_000  # of vectors; below it the engine builds no graph
_KEPT = 4  # banks of a store's process, some 140 MB of disk each: users' of this and the last versions


class BankShard:
    """Vectors by id, searched by cosine, in a folder for temporary files that goes with the object.

    Safe to use from several threads.

    Args:
        name: of the bank.
        width: of the vectors.
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
        """Return (id, cosine) of the nearest of each query, best first.

        Args:
            queries: (vector, how many, ids that are left out).
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

    They last as long as the process, and the longest unused makes room for a new one: who asks for one that is gone is
    told so and writes it anew (`workers.store.banks.bank.ServerBank`). Calls run in threads: reads of knowledge do not
    wait.
    """

    def __init__(self) -> None:
        self._banks = _Kept(_KEPT)

    def has(self, name: str) -> bool:
        """Return whether there is a collection of this name."""
        return name in self._banks

    async def create(self, name: str, asked: dict[str, Any]) -> None:
        """Make a collection as asked by `PUT /collections/NAME`."""
        width = int(asked["vectors"]["size"])
        made = await asyncio.to_thread(BankShard, name, width)
        if name not in self._banks:  # else made meanwhile
            self._banks[name] = made

    async def count(self, name: str) -> dict[str, int]:
        """Answer `POST …/points/count`."""
        return {"count": self._banks[name].count()}

    async def put(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer `PUT …/points`."""
        points = [(int(point["id"]), point["vector"]) for point in asked["points"]]
        await asyncio.to_thread(self._banks[name].put, points)
        return {"operation_id": 0, "status": "completed"}

    async def query(self, name: str, searches: Sequence[tuple[list[float], int, Collection[int]]]) -> list[Any]:
        """Answer `POST …/points/query/batch`."""
        found = await asyncio.to_thread(self._banks[name].nearest, searches)
        return [{"points": [{"id": id_, "version": 0, "score": score} for id_, score in points]} for points in found]
