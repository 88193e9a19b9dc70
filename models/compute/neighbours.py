"""Banks of embeddings: cosine nearest neighbours. Exact search is here, Qdrant's is in `workers.store.banks.bank`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

_CHUNK = 2048  # queries per block: 180 MB of cosines for a bank of 22,000 vectors


class Bank(Protocol):
    """Vectors (b, w), searched by cosine similarity."""

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """Return rows (q, n) int64 of the vectors nearest to each of `query` (q, w), best first, −1 = no more.

        Args:
            own: (q,) row of the query itself, which is excluded; −1 = none.
        """


Banks = Callable[[str, Tensor], Bank]
"""Builds a bank from its name ("users", "items") and vectors (b, w)."""


class ExactBank:
    """A bank in memory that compares the query with every vector.

    Args:
        vectors: (b, w).
    """

    def __init__(self, vectors: Tensor) -> None:
        self._unit = nn.functional.normalize(vectors, dim=1)

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """See `Bank.nearest`."""
        found = torch.full((len(query), n), -1, dtype=torch.int64)
        kept = min(n, len(self._unit))
        for at in range(0, len(query), _CHUNK):
            like = nn.functional.normalize(query[at : at + _CHUNK], dim=1) @ self._unit.T
            itself = own[at : at + _CHUNK]
            each = torch.arange(len(like))
            like[each[itself >= 0], itself[itself >= 0]] = -torch.inf
            best = like.topk(kept, 1)
            found[at : at + _CHUNK, :kept] = torch.where(best.values.isneginf(), -1, best.indices)
        return found


def exact(name: str, vectors: Tensor) -> Bank:
    """Return an `ExactBank`; the default `Banks`."""
    return ExactBank(vectors)


def mean_of(vectors: Tensor, rows: Tensor) -> Tensor:
    """Return the mean (q, w) of the rows (q, n) of `vectors` (b, w), −1 = none; zero if there are no rows."""
    there = rows >= 0
    if not len(vectors):
        return vectors.new_zeros(len(rows), vectors.shape[1])
    chosen = vectors[rows.clamp(min=0)] * there[..., None]
    return chosen.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
