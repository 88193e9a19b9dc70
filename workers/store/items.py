"""Item knowledge in the store: one point per item with the encoding of its text and what was written of it.

As for users, the id follows from the item's id, every write carries a version (here of the model version, so that a
later fit replaces an earlier one), and none replaces a newer one. Writing is repeated freely: what is there is skipped.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection as Several
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models as qm

from schemas.errors import FreshetError
from schemas.messages import LARGEST
from schemas.settings import QdrantSettings, Settings
from workers.store.collection import BATCH, Collection

log = logging.getLogger(__name__)
ITEMS = "item_knowledge"
TEXT = "text"  # name of the vector
# Never change it: another namespace would give every item a second point.
_NAMESPACE = uuid.UUID("0d3c1f6a-4b7e-5c2d-8a61-93f0b7c5e2d4")


def item_point_id(item_id: str) -> str:
    """Return the id of an item's point. It is the same in every process and after every restart."""
    return str(uuid.uuid5(_NAMESPACE, item_id))


@dataclass(frozen=True, slots=True)
class ItemPoint:
    """Knowledge of one item.

    Args:
        version: of the model version it came with: milliseconds since 1970 of its fit.
        vector: (d,) float32 of unit length, encoding of the item's text; zeros if it has none.
        text: the catalogue's.
        written: what a language model wrote; "" = nothing.
        encoder: name of the sentence encoder.
        fitted_at: wall clock, seconds since 1970.
    """

    item_id: str
    version: int
    model_version: str
    vector: NDArray[np.float32]
    text: str = ""
    written: str = ""
    encoder: str = ""
    fitted_at: float = 0.0


@dataclass(frozen=True, slots=True)
class SimilarItem:
    """An item with a similar text; `score` is the cosine of the encodings."""

    item_id: str
    score: float


class ItemStore(Protocol):
    """A store of item knowledge. Every method raises `StoreUnavailableError` when it does not answer in time."""

    def ensure(self) -> None:
        """Create the collection if it is missing.

        Raises:
            FreshetError: it exists with vectors of another width, or the server is too old for conditional writes.
        """

    def upsert(self, points: Sequence[ItemPoint]) -> None:
        """Write points, each unless the store holds the same or a newer version of its item.

        Raises:
            ValueError: a vector is not finite or has another width; nothing was written.
        """

    def versions(self, item_ids: Several[str]) -> dict[str, int]:
        """Return the versions of the items that have a point."""

    def read(self, item_ids: Several[str]) -> dict[str, ItemPoint]:
        """Return the sound points of the items that have one."""

    def neighbours(self, vector: NDArray[np.float32], n: int, exclude: Several[str] = ()) -> list[SimilarItem]:
        """Return the `n` items nearest to `vector` (d,) by cosine, nearest first."""

    def count(self) -> int:
        """Return the number of points."""

    def close(self) -> None:
        """Release all resources."""


class QdrantItems(Collection):
    """An `ItemStore` over `qdrant-client`, on a server or on the embedded store's process.

    Args:
        location: a server's URL, or ":memory:" (tests only).
        dim: width of the encodings.
        settings: key, protocol and timeout.
        collection: its name on the server.

    Raises:
        FreshetError: URL or key cannot be used.
    """

    def __init__(
        self, location: str, dim: int, settings: QdrantSettings | None = None, collection: str = ITEMS,
    ) -> None:
        self._dim = dim
        super().__init__(location, collection, {
            TEXT: qm.VectorParams(size=dim, distance=qm.Distance.COSINE, datatype=qm.Datatype.FLOAT16),
        }, TEXT, other_encoder, settings)

    @classmethod
    def at(cls, settings: Settings, dim: int) -> QdrantItems:
        """Return the store that the settings name, without asking it anything."""
        return cls(settings.qdrant.url, dim, settings.qdrant, settings.kafka.full(ITEMS))

    def upsert(self, points: Sequence[ItemPoint]) -> None:
        """See `ItemStore.upsert`."""
        check_items(points, self._dim)
        for begin in range(0, len(points), BATCH):
            groups: dict[int, list[qm.PointStruct]] = {}
            for point in points[begin : begin + BATCH]:
                groups.setdefault(point.version, []).append(qm.PointStruct(
                    id=item_point_id(point.item_id), vector={TEXT: point.vector.tolist()},
                    payload=item_payload(point)))
            self._write(groups)

    def versions(self, item_ids: Several[str]) -> dict[str, int]:
        """See `ItemStore.versions`."""
        return versions_of(item_ids, self._versions([item_point_id(item) for item in item_ids]).items())

    def read(self, item_ids: Several[str]) -> dict[str, ItemPoint]:
        """See `ItemStore.read`."""
        records = self._retrieve([item_point_id(item) for item in item_ids], True, with_vectors=True)
        return gather_items(item_ids, ((str(r.id), r.payload, r.vector) for r in records), self._dim)

    def neighbours(self, vector: NDArray[np.float32], n: int, exclude: Several[str] = ()) -> list[SimilarItem]:
        """See `ItemStore.neighbours`."""
        found = self._nearest(vector.tolist(), n, [item_point_id(item) for item in exclude])
        return similar_items((point.payload, point.score) for point in found)


def write_missing(store: ItemStore, points: Sequence[ItemPoint], batch: int = 256) -> Iterator[tuple[int, int]]:
    """Write the points that the store lacks or has in an older version; yield points seen and written so far."""
    seen = wrote = 0
    for begin in range(0, len(points), batch):
        part = points[begin : begin + batch]
        held = store.versions([point.item_id for point in part])
        missing = [point for point in part if held.get(point.item_id, -1) < point.version]
        if missing:
            store.upsert(missing)
        seen, wrote = seen + len(part), wrote + len(missing)
        yield seen, wrote


def check_items(points: Sequence[ItemPoint], dim: int) -> None:
    """Raise ValueError if a vector is not finite or not of shape (dim,)."""
    for point in points:
        if point.vector.shape != (dim,):
            raise ValueError(f"knowledge of item {point.item_id!r} has shape {point.vector.shape}, not ({dim},)")
        if not np.isfinite(point.vector).all():
            raise ValueError(f"knowledge of item {point.item_id!r} is not finite")


def other_encoder(where: str, held: int, wanted: int) -> FreshetError:
    """Return the error for a collection of another encoder's width."""
    return FreshetError(
        f"{where} holds encodings of width {held}, but the model version's sentence encoder makes {wanted}; delete "
        f"that collection, and it is filled again from the model version")


def item_payload(point: ItemPoint) -> dict[str, Any]:
    """Return the payload, which is stored next to the vector."""
    return {
        "item": point.item_id, "version": point.version, "model_version": point.model_version, "text": point.text,
        "written": point.written, "encoder": point.encoder, "fitted_at": point.fitted_at}


def versions_of(item_ids: Several[str], held: Iterable[tuple[str, Any]]) -> dict[str, int]:
    """Return the versions of these items from pairs of id and version; what is no version is left out."""
    items = {item_point_id(item): item for item in item_ids}
    return {items[id_]: version for id_, version in held if id_ in items and type(version) is int}


def gather_items(
    item_ids: Several[str], records: Iterable[tuple[str, Any, Any]], dim: int,
) -> dict[str, ItemPoint]:
    """Return the sound points of these items among records (id, payload, vectors)."""
    items = {item_point_id(item): item for item in item_ids}
    found = {}
    for id_, fields, named in records:
        try:
            item = items[id_]
            texts = [fields[name] for name in ("model_version", "text", "written", "encoder")]
            point = ItemPoint(
                item, fields["version"], texts[0], np.asarray(named[TEXT], np.float32), texts[1], texts[2], texts[3],
                float(fields["fitted_at"]))
            if (fields["item"] != item or type(point.version) is not int or not 0 <= point.version <= LARGEST
                    or not all(isinstance(text, str) for text in texts)):
                raise ValueError("a field is not what was written")
            check_items([point], dim)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            log.error("knowledge of item %s in the store is damaged: %s", items.get(id_, id_), str(error)[:200])
        else:
            found[item] = point
    return found


def similar_items(found: Iterable[tuple[Any, float]]) -> list[SimilarItem]:
    """Return the items of (payload, score) pairs. A damaged point without an item is left out."""
    return [SimilarItem(fields["item"], float(score)) for fields, score in found
            if isinstance(fields, dict) and isinstance(fields.get("item"), str)]
