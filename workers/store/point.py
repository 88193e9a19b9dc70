"""The interface of a knowledge store and the format of a point.

Every user has one point, whose id is derived from the user's id. Every write carries a version and never replaces a
newer one. So repeated and late writes are harmless in any order.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import FreshetError

COLLECTION = "user_knowledge"
VECTORS, POOLED = "knowledge", "pooled"  # names of a point's two vectors
STEP = 2.0**-13  # of evidence weights; a copy of `models.evidence.ease.STEP`, so that torch need not be imported
# Never change it: another namespace would give every user a second point.
_NAMESPACE = uuid.UUID("6b1f3c1e-2f0e-5b7a-9d55-6e1d1f0a7c11")


def point_id(user_id: str) -> str:
    """Return the id of a user's point. It is the same in every process and after every restart."""
    return str(uuid.uuid5(_NAMESPACE, user_id))


@dataclass(frozen=True, slots=True)
class KnowledgePoint:
    """One user's knowledge.

    Args:
        vectors: (K, d) float16, each of length ≤ 1.
        pooled: (d,) float32; direction for neighbour search, stored with length 1 (a zero vector stays zero).
        history_hash: hash of the history that the knowledge was generated from.
        generated_at: wall clock, seconds since 1970.
        event_time: time of the newest event that the knowledge includes, seconds, set by the producer.
        count: the user's event count at that event.
        codes: the codeword chosen by each of the K soft instructions; () = not known.
        items, weights: evidence of the history (`models.evidence.ease`); items are rows of the model version.
    """

    user_id: str
    version: int
    model_version: str
    vectors: NDArray[np.float16]
    pooled: NDArray[np.float32]
    history_hash: str
    reason: str
    generated_at: float
    event_time: float
    count: int
    codes: tuple[int, ...] = ()
    items: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A user with similar knowledge; `score` is the cosine of the pooled vectors."""

    user_id: str
    score: float


class KnowledgeStore(Protocol):
    """A store of knowledge points.

    Every method raises `StoreUnavailableError` when the store does not answer in time; the next call may succeed.
    """

    def ensure(self) -> None:
        """Create the collection if it is missing. Several processes may do so at once.

        Raises:
            FreshetError: it exists with vectors of another width.
        """

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        """Write points atomically per point. A point only replaces an older version of the same user.

        Returns:
            Per point, whether the store now holds exactly that version (also true when a write is repeated).

        Raises:
            ValueError: a vector is not finite or has another width; nothing was written.
        """

    def read(self, user_ids: Collection[str]) -> dict[str, KnowledgePoint]:
        """Return the points of the users that have one."""

    def neighbours(self, pooled: NDArray[np.float32], n: int, exclude: Collection[str] = ()) -> list[Neighbour]:
        """Return the `n` users nearest to `pooled` (d,) by cosine, nearest first."""

    def count(self) -> int:
        """Return the number of points."""

    def close(self) -> None:
        """Release all resources. The store cannot be used afterwards."""


def newest_per_user(points: Sequence[KnowledgePoint]) -> list[KnowledgePoint]:
    """Return the highest version of each user, the last one of equals."""
    newest: dict[str, KnowledgePoint] = {}
    for point in points:
        held = newest.get(point.user_id)
        if held is None or point.version >= held.version:
            newest[point.user_id] = point
    return list(newest.values())


def by_version(points: Sequence[KnowledgePoint]) -> dict[int, list[KnowledgePoint]]:
    """Return the points grouped by version. The points of a group share one write condition, `version < theirs`."""
    groups: dict[int, list[KnowledgePoint]] = {}
    for point in points:
        groups.setdefault(point.version, []).append(point)
    return groups


def check(points: Sequence[KnowledgePoint], dim: int) -> None:
    """Raise ValueError if a point's vectors are not finite or not of shapes (K, dim) and (dim,)."""
    for point in points:
        shapes = (point.vectors.ndim, point.vectors.shape[-1], point.pooled.shape)
        if shapes != (2, dim, (dim,)) or not len(point.vectors):
            raise ValueError(f"knowledge of {point.user_id!r} has shape {point.vectors.shape}, not (K, {dim})")
        if not (np.isfinite(point.vectors).all() and np.isfinite(point.pooled).all()):
            raise ValueError(f"knowledge of {point.user_id!r} is not finite")


def wrong_width(where: str, held: int, wanted: int) -> FreshetError:
    """Return the error for a collection that was created for models of another width."""
    return FreshetError(
        f"{where} holds knowledge vectors of width {held}, but the model makes {wanted}; "
        f"use another store, delete that one, or fit with fit.dim = {held}")


def payload(point: KnowledgePoint) -> dict[str, Any]:
    """Return the payload, which is stored next to the vectors."""
    return {
        "user": point.user_id, "version": point.version, "model_version": point.model_version,
        "history_hash": point.history_hash, "reason": point.reason, "generated_at": point.generated_at,
        "event_time": point.event_time, "count": point.count,
        "codes": list(point.codes),
        # Whole multiples of the step: 4 characters each instead of 18, and exact in any reader.
        "items": list(point.items), "weights": [round(weight / STEP) for weight in point.weights],
    }


def vectors(point: KnowledgePoint) -> dict[str, Any]:
    """Return the named vectors as nested lists of Python floats."""
    return {VECTORS: point.vectors.tolist(), POOLED: point.pooled.tolist()}


def from_record(fields: dict[str, Any], named: Any) -> KnowledgePoint:
    """Return the point that was stored as `payload` and `vectors`. The vectors' values are rounded to float16."""
    return KnowledgePoint(
        user_id=fields["user"], version=int(fields["version"]), model_version=fields["model_version"],
        vectors=np.asarray(named[VECTORS], dtype=np.float16), pooled=np.asarray(named[POOLED], dtype=np.float32),
        history_hash=fields["history_hash"], reason=fields["reason"], generated_at=float(fields["generated_at"]),
        event_time=float(fields["event_time"]), count=int(fields["count"]),
        codes=tuple(int(code) for code in fields.get("codes", ())),  # older points have none
        items=tuple(int(row) for row in fields.get("items", ())),
        weights=tuple(int(steps) * STEP for steps in fields.get("weights", ())),
    )
