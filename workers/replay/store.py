"""The in-memory knowledge store that a replay uses instead of Qdrant."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from workers.store.point import DamagedPoint, Found, KnowledgePoint, Neighbour, check, payload


class MemoryStore:
    """A `KnowledgeStore` in memory. It is always available."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._points: dict[str, KnowledgePoint] = {}

    def ensure(self) -> None:
        """Do nothing: there is no collection to create."""

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        """Write points, each only over an older version of the same user.

        Raises:
            ValueError: a vector is not finite or has another width; nothing was written.
        """
        check(points, self._dim)
        for point in points:
            held = self._points.get(point.user_id)
            if held is None or held.version < point.version:
                self._points[point.user_id] = point
        return [self._points[point.user_id].version == point.version for point in points]

    def read(self, user_ids: Collection[str]) -> dict[str, KnowledgePoint]:
        """Return the points of the users that have one."""
        return {user: self._points[user] for user in user_ids if user in self._points}

    def look(self, user_ids: Collection[str]) -> Found:
        """Return the points of the users that have one. None is damaged."""
        return Found(self.read(user_ids), {})

    def discard(self, damaged: Collection[DamagedPoint]) -> None:
        """Do nothing: no point is damaged."""

    def erase(self, user_ids: Collection[str]) -> set[str]:
        """Delete the points of users; return the users who had one."""
        return {user for user in user_ids if self._points.pop(user, None) is not None}

    def neighbours(self, pooled: NDArray[np.float32], n: int, exclude: Collection[str] = ()) -> list[Neighbour]:
        """Return the `n` users nearest to `pooled` (d,) by cosine, nearest first."""
        users = [user for user in self._points if user not in exclude]
        if not users:
            return []
        rows = np.stack([self._points[user].pooled for user in users])
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(pooled)
        scores = np.divide(rows @ pooled, norms, out=np.zeros(len(users), np.float32), where=norms > 0)
        return [Neighbour(users[place], float(scores[place])) for place in np.argsort(-scores, kind="stable")[:n]]

    def count(self) -> int:
        """Return the number of points."""
        return len(self._points)

    def close(self) -> None:
        """Delete everything."""
        self._points.clear()

    def bytes_per_user(self) -> float:
        """Return the mean bytes per user: the point's arrays, and its other fields as JSON; 0 without points.

        Qdrant's own overhead (ids, segments, index) is not included.
        """
        total = 0
        for point in self._points.values():
            total += point.vectors.nbytes + point.pooled.nbytes + len(orjson.dumps(payload(point)))
        return total / len(self._points) if self._points else 0.0
