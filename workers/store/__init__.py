"""The knowledge store: the format of a point, the Qdrant client, and cached reads that survive an outage.

`workers/store/embedded` runs Qdrant's engine in a process of the stack.

May import: –.
"""

from __future__ import annotations

from workers.store.point import KnowledgePoint, KnowledgeStore, Neighbour, point_id
from workers.store.qdrant import QdrantStore

__all__ = ["KnowledgePoint", "KnowledgeStore", "Neighbour", "QdrantStore", "point_id"]
