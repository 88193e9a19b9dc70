"""The interface of a knowledge store and the format of a point.

Every user has one point, whose id is derived from the user's id. Every write carries a version and never replaces a
newer one. So repeated and late writes are harmless in any order.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.errors import FreshetError, StoreUnavailableError
from schemas.messages import LARGEST

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
class DamagedPoint:
    """A point that cannot be used.

    Args:
        version: as stored; None = not a whole number of 64 bits.
        why: for the log.
    """

    user_id: str
    version: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the store holds of users, by user id."""

    points: dict[str, KnowledgePoint]
    damaged: dict[str, DamagedPoint]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A user with similar knowledge; `score` is the cosine of the pooled vectors."""

    user_id: str
    score: float


class KnowledgeStore(Protocol):
    """A store of knowledge points.

    Every method raises `StoreUnavailableError` when the store does not answer in time or is busy; the next call may
    succeed.
    """

    def ensure(self) -> None:
        """Create the collection if it is missing. Several processes may do so at once.

        Raises:
            FreshetError: it exists with vectors of another width, or the server is too old for conditional writes.
        """

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        """Write points atomically per point. A point only replaces an older version of the same user.

        Returns:
            Per point, whether the store now holds exactly that version (also true when a write is repeated).

        Raises:
            ValueError: a vector is not finite or has another width; nothing was written.
        """

    def read(self, user_ids: Collection[str]) -> dict[str, KnowledgePoint]:
        """Return the sound points of the users that have one."""

    def look(self, user_ids: Collection[str]) -> Found:
        """Return the points of the users that have one, the damaged ones apart."""

    def discard(self, damaged: Collection[DamagedPoint]) -> None:
        """Delete damaged points. One whose version is no longer that of `look` was replaced meanwhile and stays.

        A version that is no whole number cannot be compared: such a point is deleted in any case.
        """

    def erase(self, user_ids: Collection[str]) -> set[str]:
        """Delete the points of users, damaged ones too; return the users who had one."""

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
        if point.vectors.ndim != 2 or point.vectors.shape[1] != dim or point.pooled.shape != (dim,) or not len(
                point.vectors):
            raise ValueError(f"knowledge of {point.user_id!r} has shape {point.vectors.shape}, not (K, {dim})")
        if not (np.isfinite(point.vectors).all() and np.isfinite(point.pooled).all()):
            raise ValueError(f"knowledge of {point.user_id!r} is not finite")


def wrong_width(where: str, held: int, wanted: int) -> FreshetError:
    """Return the error for a collection that was created for models of another width."""
    return FreshetError(
        f"{where} holds knowledge vectors of width {held}, but the model makes {wanted}; "
        f"use another store, delete that one, or fit with fit.dim = {held}")


def digest(point: KnowledgePoint) -> str:
    """Return a short hash of what a ranking depends on.

    Times are left out: the store's JSON reader may change their 17th digit. So is `pooled`, which it normalises.
    """
    fields = orjson.dumps([
        point.user_id, point.version, point.model_version, point.count, point.codes, point.items,
        [round(weight / STEP) for weight in point.weights], point.vectors.shape])
    values = (point.vectors + np.float16(0)).astype("<f2").tobytes()  # + 0: a store may drop the sign of −0
    return hashlib.blake2b(fields + values, digest_size=8).hexdigest()


def payload(point: KnowledgePoint) -> dict[str, Any]:
    """Return the payload, which is stored next to the vectors."""
    return {
        "digest": digest(point),
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


def from_record(user_id: str, fields: Any, named: Any, dim: int) -> KnowledgePoint | DamagedPoint:
    """Return the point that was stored as `payload` and `vectors`. The vectors' values are rounded to float16.

    Args:
        user_id: whose point it must be.
        dim: width that the vectors must have.
    """
    try:
        version = fields["version"]
        if type(version) is not int or not 1 <= version <= LARGEST:
            raise ValueError(f"version {str(version)[:40]!r}")
        if fields["user"] != user_id:
            raise ValueError("it belongs to another user")
        items, weights = fields.get("items", ()), fields.get("weights", ())
        if len(items) != len(weights) or not all(type(n) is int and abs(n) < 2**31 for n in (*items, *weights)):
            raise ValueError("its evidence is not pairs of items and weights")
        if min(items, default=0) < 0:
            raise ValueError("its evidence names an item below 0")
        texts = [fields[name] for name in ("model_version", "history_hash", "reason")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text is not one")
        with np.errstate(over="ignore"):  # it becomes infinite, and is refused below
            point = KnowledgePoint(
                user_id, version, texts[0], np.asarray(named[VECTORS], dtype=np.float16),
                np.asarray(named[POOLED], dtype=np.float32), texts[1], texts[2], float(fields["generated_at"]),
                float(fields["event_time"]), int(fields["count"]),
                codes=tuple(int(code) for code in fields.get("codes", ())),  # older points have none
                items=tuple(items), weights=tuple(steps * STEP for steps in weights))
        if not math.isfinite(point.generated_at) or not math.isfinite(point.event_time):
            raise ValueError("a time is not finite")
        check([point], dim)
        if (held := fields.get("digest")) is not None and held != digest(point):  # older points have none
            raise ValueError("its digest is not that of its content")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        version = fields.get("version") if isinstance(fields, dict) else None
        return DamagedPoint(user_id, version if type(version) is int and -(2**63) <= version < 2**63 else None,
                            f"{type(error).__name__}: {error}"[:200])
    return point


def gather(user_ids: Collection[str], records: Iterable[tuple[str, Any, Any]], dim: int) -> Found:
    """Return what the records (id, payload, vectors) of these users are worth."""
    users = {point_id(user): user for user in user_ids}
    found = Found({}, {})
    for id_, fields, named in records:
        if id_ not in users:  # not asked for
            continue
        point = from_record(users[id_], fields, named, dim)
        if isinstance(point, KnowledgePoint):
            found.points[point.user_id] = point
        else:
            found.damaged[point.user_id] = point
    return found


def written(points: Sequence[KnowledgePoint], held: Mapping[str, Any]) -> list[bool]:
    """Return what `KnowledgeStore.upsert` returns, from the versions that the store holds by id after the write.

    Raises:
        StoreUnavailableError: it took a point and holds neither that version nor a newer one.
    """
    done = []
    for point in points:
        version = held.get(point_id(point.user_id))
        if type(version) is not int or version < point.version:
            raise StoreUnavailableError(
                f"the knowledge store took version {point.version} of a point but holds {str(version)[:40]}")
        done.append(version == point.version)
    return done

def named_neighbours(found: Iterable[tuple[Any, float]]) -> list[Neighbour]:
    """Return the neighbours of (payload, score) pairs. A damaged point without a user is no neighbour."""
    return [Neighbour(fields["user"], float(score)) for fields, score in found
            if isinstance(fields, dict) and isinstance(fields.get("user"), str)]
