"""The knowledge store: what a point is, the Qdrant client, reads that survive an outage.

Qdrant's engine in-process is in `workers/store/embedded`.

May import: –.
"""

from __future__ import annotations

from workers.store.point import KnowledgePoint, KnowledgeStore, Neighbour, point_id
from workers.store.qdrant import QdrantStore

__all__ = ["KnowledgePoint", "KnowledgeStore", "Neighbour", "QdrantStore", "point_id"]
