"""Ranking metrics: each event is predicted from earlier events, over the whole catalogue without seen items.

Recall@k is 1 if the target item is among the first k. NDCG@k is 1/log₂(rank + 2) in that case (with one relevant item
the ideal DCG is 1). A repeated item counts as a miss for every scorer, because seen items are not recommended.
"""

from __future__ import annotations

import numpy as np

from models.data.dataset import FloatArray, IntArray


def recall(ranks: IntArray, k: int = 10) -> FloatArray:
    """Return (m,) 1.0 where the rank (0 = first) is below k, else 0."""
    return (ranks < k).astype(np.float64)


def ndcg(ranks: IntArray, k: int = 10) -> FloatArray:
    """Return (m,) 1/log₂(rank + 2) where the rank is below k, else 0."""
    return np.where(ranks < k, 1 / np.log2(np.minimum(ranks, k) + 2), 0.0)


def hits_lost(ranks: IntArray, reference: IntArray, k: int = 10) -> float:
    """Return the share of the reference's hits (rank below k) that ranks (m,) of the same events do not have.

    0 without hits. A bound on the likelihood does not bound it.
    """
    hit = reference < k
    return float((ranks[hit] >= k).mean()) if hit.any() else 0.0


def metrics(ranks: IntArray, k: int = 10) -> dict[str, float]:
    """Return {"recall_at_k", "ndcg_at_k", "n"} of ranks (m,)."""
    n = len(ranks)
    return {
        f"recall_at_{k}": float(recall(ranks, k).mean()) if n else 0.0,
        f"ndcg_at_{k}": float(ndcg(ranks, k).mean()) if n else 0.0, "n": float(n),
    }


