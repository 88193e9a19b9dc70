"""Where knowledge is kept: one interface, two engines (Qdrant's own in this process, or a Qdrant server)."""

from __future__ import annotations

from workers.store.base import KnowledgePoint, KnowledgeStore, Neighbour, point_id
from workers.store.qdrant import QdrantStore

__all__ = ["KnowledgePoint", "KnowledgeStore", "Neighbour", "QdrantStore", "point_id"]
