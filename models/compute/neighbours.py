"""Banks of embeddings: the vectors most like a query's. Here the exact one; `workers.store.banks.bank` has Qdrant's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

_CHUNK = 2048  # queries at a time: 180 MB of cosines to a bank of 22,000


class Bank(Protocol):
    """Vectors (b, w), found by cosine."""

    def nearest(self, query: Tensor, n: int, own: Tensor) -> Tensor:
        """Return rows (q, n) int64 of the vectors most like each of `query` (q, w), best first, −1 = no more.

        Args:
            own: (q,) row that is the query itself and is left out, −1 = none.
        """


Banks = Callable[[str, Tensor], Bank]
"""Makes a bank from its name ("users", "items") and vectors (b, w)."""


class ExactBank:
    """A bank in memory: every vector is compared.

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
    """Return an `ExactBank`; this is the `Banks` for those who have no other."""
    return ExactBank(vectors)


def mean_of(vectors: Tensor, rows: Tensor) -> Tensor:
    """Return the mean (q, w) of the rows (q, n) of `vectors` (b, w), −1 = none; zero where there is none at all."""
    there = rows >= 0
    if not len(vectors):
        return vectors.new_zeros(len(rows), vectors.shape[1])
    chosen = vectors[rows.clamp(min=0)] * there[..., None]
    return chosen.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
