"""What every knowledge store does, and how a piece of knowledge looks inside one.

A user has one point, its id made from the user's id. Every write carries a version and never replaces a newer one, so
that redelivered and overtaken writes are harmless in any order.
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
VECTORS, POOLED = "knowledge", "pooled"  # names of the two vectors of a point
STEP = 2.0**-13  # of evidence weights, as `models.evidence.ease.STEP`, which this process need not import torch for
# Fixed for ever: another namespace would give every user a second point.
_NAMESPACE = uuid.UUID("6b1f3c1e-2f0e-5b7a-9d55-6e1d1f0a7c11")


def point_id(user_id: str) -> str:
    """Return the id of a user's point: the same in every process and after every restart."""
    return str(uuid.uuid5(_NAMESPACE, user_id))


@dataclass(frozen=True, slots=True)
class KnowledgePoint:
    """One user's knowledge.

    Args:
        vectors: (K, d) float16, each of length ≤ 1.
        pooled: (d,) float32; direction for neighbour search, stored at length 1 (a zero vector stays zero).
        history_hash: of the history it was generated from.
        generated_at: wall clock, seconds since 1970.
        event_time: newest event the knowledge includes, the producer's seconds.
        count: the user's event count at that event.
        codes: codeword chosen by each of the K soft instructions; () = not known.
        items, weights: evidence of the history (`models.evidence.ease`), as item rows of the model version.
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
        """Create the collection if it is absent; any number of processes may do so at once.

        Raises:
            FreshetError: it exists with vectors of another width.
        """

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        """Write points, each only over an older version of the same user, atomically per point.

        Returns:
            Per point, whether the store now holds exactly that version (true again when a write is repeated).

        Raises:
            ValueError: a vector is not finite or has another width; nothing was written.
        """

    def read(self, user_ids: Collection[str]) -> dict[str, KnowledgePoint]:
        """Return the points of those users that have one."""

    def neighbours(self, pooled: NDArray[np.float32], n: int, exclude: Collection[str] = ()) -> list[Neighbour]:
        """Return the `n` users nearest to `pooled` (d,) by cosine, nearest first."""

    def count(self) -> int:
        """Return the number of points."""

    def close(self) -> None:
        """Release what is held; the store cannot be used any more."""


def newest_per_user(points: Sequence[KnowledgePoint]) -> list[KnowledgePoint]:
    """Return the highest version of each user, the later one of equals."""
    newest: dict[str, KnowledgePoint] = {}
    for point in points:
        held = newest.get(point.user_id)
        if held is None or point.version >= held.version:
            newest[point.user_id] = point
    return list(newest.values())


def by_version(points: Sequence[KnowledgePoint]) -> dict[int, list[KnowledgePoint]]:
    """Return the points grouped by version: the points of a group share one condition, `version < theirs`."""
    groups: dict[int, list[KnowledgePoint]] = {}
    for point in points:
        groups.setdefault(point.version, []).append(point)
    return groups


def check(points: Sequence[KnowledgePoint], dim: int) -> None:
    """Raise ValueError if a point's vectors are not finite, (K, dim) and (dim,)."""
    for point in points:
        shapes = (point.vectors.ndim, point.vectors.shape[-1], point.pooled.shape)
        if shapes != (2, dim, (dim,)) or not len(point.vectors):
            raise ValueError(f"knowledge of {point.user_id!r} has shape {point.vectors.shape}, not (K, {dim})")
        if not (np.isfinite(point.vectors).all() and np.isfinite(point.pooled).all()):
            raise ValueError(f"knowledge of {point.user_id!r} is not finite")


def wrong_width(where: str, held: int, wanted: int) -> FreshetError:
    """Return the error for a collection made for models of another width."""
    return FreshetError(
        f"{where} holds knowledge vectors of width {held}, but the model makes {wanted}; "
        f"use another store, remove that one, or fit with fit.dim = {held}")


def payload(point: KnowledgePoint) -> dict[str, Any]:
    """Return what is stored beside the vectors."""
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
    """Return the point that `payload` and `vectors` were stored from; the vectors' values are rounded to float16."""
    return KnowledgePoint(
        user_id=fields["user"], version=int(fields["version"]), model_version=fields["model_version"],
        vectors=np.asarray(named[VECTORS], dtype=np.float16), pooled=np.asarray(named[POOLED], dtype=np.float32),
        history_hash=fields["history_hash"], reason=fields["reason"], generated_at=float(fields["generated_at"]),
        event_time=float(fields["event_time"]), count=int(fields["count"]),
        codes=tuple(int(code) for code in fields.get("codes", ())),  # older points have none
        items=tuple(int(row) for row in fields.get("items", ())),
        weights=tuple(int(steps) * STEP for steps in fields.get("weights", ())),
    )
