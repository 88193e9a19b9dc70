"""The embedded store: Qdrant's engine in this process (`qdrant-edge-py`), one folder, one owner."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import qdrant_edge as qe
from numpy.typing import NDArray

from schemas.errors import FreshetError
from schemas.files import written_whole
from workers.store.items import (
    ITEMS,
    TEXT,
    ItemPoint,
    SimilarItem,
    check_items,
    gather_items,
    item_payload,
    item_point_id,
    other_encoder,
    similar_items,
    versions_of,
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

_CONFIG = "edge_config.json"  # written by the engine; it is there as soon as the folder is a shard
ITEM_FOLDER = ".items"  # within the users' folder, whose lock covers it; its name keeps it when that is settled
_MADE = "made"  # a new shard's place until it is whole
# A write to an existing point leaves the old one behind in its segment; when as many writes have been made as there are
# points (and at least this many) the segments are rewritten without them.
_VACUUM_EVERY = 20_000
# No graph index below 2 GB of vectors (that is above 1,000,000 users of 5×64): building one takes 146 s per 100,000
# points on two cores, an exact search among 100,000 takes 2.4 ms.
_INDEX_ABOVE_KB = 2_000_000


@dataclass(frozen=True, slots=True)
class ShardKind:
    """What a shard holds.

    Args:
        collection: its name for clients.
        search: name of the vector for neighbours; it is compared by cosine.
        vectors: returns the vectors' parameters for a width.
        described: returns the same as a server describes them.
        wrong_width: returns the error for a shard of another width.
    """

    collection: str
    search: str
    vectors: Callable[[int], dict[str, Any]]
    described: Callable[[int], dict[str, Any]]
    wrong_width: Callable[[str, int, int], FreshetError]


OF_USERS = ShardKind(
    COLLECTION, POOLED,
    lambda dim: {
        VECTORS: qe.EdgeVectorParams(
            dim, qe.Distance.Dot, datatype=qe.VectorStorageDatatype.Float16,
            multivector_config=qe.MultiVectorConfig(qe.MultiVectorComparator.MaxSim)),
        POOLED: qe.EdgeVectorParams(dim, qe.Distance.Cosine)},
    lambda dim: {
        VECTORS: {"size": dim, "distance": "Dot", "datatype": "float16",
                  "multivector_config": {"comparator": "max_sim"}},
        POOLED: {"size": dim, "distance": "Cosine"}},
    wrong_width)
OF_ITEMS = ShardKind(
    ITEMS, TEXT,
    lambda dim: {TEXT: qe.EdgeVectorParams(dim, qe.Distance.Cosine, datatype=qe.VectorStorageDatatype.Float16)},
    lambda dim: {TEXT: {"size": dim, "distance": "Cosine", "datatype": "float16"}},
    other_encoder)


class Shard:
    """A folder of points in plain terms (ids, named vectors, payloads): what the store and its server stand on.

    Safe to use from several threads. A second process that opens the folder gets a FreshetError.
    """

    def __init__(self, path: Path, kind: ShardKind = OF_USERS) -> None:
        self.path, self.kind = path, kind
        self._lock = threading.Lock()
        self._writes = 0
        self._shard: Any = None
        if (path / _CONFIG).exists():
            self._shard = self._open()

    @property
    def dim(self) -> int | None:
        """Width of the vectors; None before `create`."""
        if self._shard is None:
            return None
        config = orjson.loads((self.path / _CONFIG).read_bytes())
        return int(config["vectors"][self.kind.search]["size"])

    def create(self, dim: int) -> bool:
        """Create the shard if there is none; return whether it was created.

        Raises:
            FreshetError: there is one of another width, or the folder cannot be used.
        """
        with self._lock:
            if self._shard is not None:
                if self.dim != dim:
                    raise self.kind.wrong_width(str(self.path), self.dim or 0, dim)
                return False
            config = qe.EdgeConfig(
                vectors=self.kind.vectors(dim),
                optimizers=qe.EdgeOptimizersConfig(indexing_threshold=_INDEX_ABOVE_KB))
            self.path.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.path / _MADE, ignore_errors=True)
            with written_whole(self.path / _MADE) as scratch:
                qe.EdgeShard.create(str(scratch), config).close()
            self._settle()
            self._shard = self._open()
            return True

    def _settle(self) -> None:
        """Move a shard that was made beside its place into it. The folder itself stays: its owner's lock lies in it.

        The file that makes the folder a shard is moved last. What a killed process left without it is removed.
        """
        made = self.path / _MADE
        for left in self.path.iterdir():
            if left != made and not left.name.startswith("."):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        for part in sorted(made.iterdir(), key=lambda part: part.name == _CONFIG):
            part.replace(self.path / part.name)
        made.rmdir()

    def upsert(self, points: Sequence[tuple[str, dict[str, Any], dict[str, Any]]], below: int) -> None:
        """Write (id, vectors, payload) triples: new ones, and those whose stored version is < `below`."""
        condition = qe.Filter(must=[qe.FieldCondition("version", range=qe.RangeFloat(lt=float(below)))])
        made = [qe.Point(id_, named, fields) for id_, named, fields in points]
        with self._lock:
            self._shard.update(qe.UpdateOperation.upsert_points(made, condition=condition))
            self._writes += len(made)

    def delete(self, ids: Sequence[str], version: int | None) -> None:
        """Delete the points of these ids; with a version, only those that have it."""
        if version is None:
            operation = qe.UpdateOperation.delete_points(list(ids))
        else:
            operation = qe.UpdateOperation.delete_points_by_filter(qe.Filter(must=[
                qe.HasIdCondition(set(ids)), qe.FieldCondition("version", match=qe.MatchValue(version))]))
        with self._lock:
            self._shard.update(operation)

    def retrieve(self, ids: Sequence[str], with_payload: Any, with_vector: Any) -> list[tuple[str, Any, Any]]:
        """Return (id, payload, vectors) of those ids that are there."""
        records = self._shard.retrieve(list(ids), with_payload, with_vector)
        return [(str(record.id), record.payload, record.vector) for record in records]

    def nearest(self, pooled: Sequence[float], n: int, exclude: Collection[str]) -> list[tuple[str, float, Any]]:
        """Return (id, cosine, payload) of the `n` points nearest to `pooled`, without those in `exclude`."""
        without = qe.Filter(must_not=[qe.HasIdCondition(set(exclude))]) if exclude else None
        found = self._shard.query(qe.QueryRequest(
            limit=n, query=qe.Query.Nearest(list(pooled), using=self.kind.search), filter=without, with_payload=True))
        return [(str(point.id), float(point.score), point.payload) for point in found]

    def count(self) -> int:
        """Return the number of points."""
        return int(self._shard.count(qe.CountRequest()))

    def tend(self) -> None:
        """Bring what was written to the disk, and the folder back to size when enough was overwritten."""
        if self._shard is None:
            return
        with self._lock:
            self._shard.flush()
            due = self._writes >= max(_VACUUM_EVERY, self.count())
            if due:
                self._writes = 0
        if due:
            self._shard.optimize()

    def close(self) -> None:
        """Flush and let go of the folder."""
        with self._lock:
            if self._shard is not None:
                self._shard.flush()
                self._shard.close()
                self._shard = None

    def _open(self) -> Any:
        try:
            return qe.EdgeShard.load(str(self.path))
        except Exception as error:  # the engine raises bare Exception for everything
            if "WAL" in str(error) and "WouldBlock" in str(error):
                raise FreshetError(
                    f"{self.path} is in use by another process; a store folder has one owner: stop the other "
                    f"`freshet up` or `freshet demo`, or give this one another FRESHET_HOME") from error
            raise FreshetError(f"the knowledge store at {self.path} cannot be opened: {error}") from error


class EdgeStore:
    """A `KnowledgeStore` on a folder of this machine."""

    def __init__(self, path: Path, dim: int) -> None:
        self._dim = dim
        self._shard = Shard(path)

    def ensure(self) -> None:
        """See `KnowledgeStore.ensure`."""
        self._shard.create(self._dim)

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        """See `KnowledgeStore.upsert`."""
        check(points, self._dim)
        for version, group in by_version(newest_per_user(points)).items():
            self._shard.upsert([(point_id(p.user_id), vectors(p), payload(p)) for p in group], version)
        ids = dict.fromkeys(point_id(point.user_id) for point in points)
        held = self._shard.retrieve(list(ids), ["version"], False)
        return written(points, {id_: (fields or {}).get("version") for id_, fields, _ in held})

    def read(self, user_ids: Collection[str]) -> dict[str, KnowledgePoint]:
        """See `KnowledgeStore.read`."""
        return self.look(user_ids).points

    def look(self, user_ids: Collection[str]) -> Found:
        """See `KnowledgeStore.look`."""
        return gather(
            user_ids, self._shard.retrieve([point_id(user) for user in user_ids], True, True), self._dim)

    def discard(self, damaged: Collection[DamagedPoint]) -> None:
        """See `KnowledgeStore.discard`."""
        for point in damaged:
            self._shard.delete([point_id(point.user_id)], point.version)

    def erase(self, user_ids: Collection[str]) -> set[str]:
        """See `KnowledgeStore.erase`."""
        ids = {point_id(user): user for user in user_ids}
        held = {ids[id_] for id_, _, _ in self._shard.retrieve(list(ids), ["version"], False)}
        if held:
            self._shard.delete([point_id(user) for user in held], None)
        return held

    def neighbours(self, pooled: NDArray[np.float32], n: int, exclude: Collection[str] = ()) -> list[Neighbour]:
        """See `KnowledgeStore.neighbours`."""
        found = self._shard.nearest(pooled.tolist(), n, [point_id(user) for user in exclude])
        return named_neighbours((fields, score) for _, score, fields in found)

    def count(self) -> int:
        """See `KnowledgeStore.count`."""
        return self._shard.count()

    def close(self) -> None:
        """See `KnowledgeStore.close`."""
        self._shard.close()


class EdgeItems:
    """An `ItemStore` on a folder of this machine."""

    def __init__(self, path: Path, dim: int) -> None:
        self._dim = dim
        self._shard = Shard(path, OF_ITEMS)

    def ensure(self) -> None:
        """See `ItemStore.ensure`."""
        self._shard.create(self._dim)

    def upsert(self, points: Sequence[ItemPoint]) -> None:
        """See `ItemStore.upsert`."""
        check_items(points, self._dim)
        groups: dict[int, list[tuple[str, dict[str, Any], dict[str, Any]]]] = {}
        for point in points:
            groups.setdefault(point.version, []).append(
                (item_point_id(point.item_id), {TEXT: point.vector.tolist()}, item_payload(point)))
        for version, group in groups.items():
            self._shard.upsert(group, version)

    def versions(self, item_ids: Collection[str]) -> dict[str, int]:
        """See `ItemStore.versions`."""
        held = self._shard.retrieve([item_point_id(item) for item in item_ids], ["version"], False)
        return versions_of(item_ids, ((id_, (fields or {}).get("version")) for id_, fields, _ in held))

    def read(self, item_ids: Collection[str]) -> dict[str, ItemPoint]:
        """See `ItemStore.read`."""
        return gather_items(
            item_ids, self._shard.retrieve([item_point_id(item) for item in item_ids], True, True), self._dim)

    def neighbours(self, vector: NDArray[np.float32], n: int, exclude: Collection[str] = ()) -> list[SimilarItem]:
        """See `ItemStore.neighbours`."""
        found = self._shard.nearest(vector.tolist(), n, [item_point_id(item) for item in exclude])
        return similar_items((fields, score) for _, score, fields in found)

    def count(self) -> int:
        """See `ItemStore.count`."""
        return self._shard.count()

    def close(self) -> None:
        """See `ItemStore.close`."""
        self._shard.close()
