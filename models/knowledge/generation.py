"""Generated knowledge for any number of users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Generation:
    """Generated knowledge for B users.

    Attributes:
        vectors: (B, K, d) float32, each of L2 norm ≤ 1; zero where not finite.
        codes: (B, K) int64, chosen codewords.
        finite: (B,) bool; False = the model returned NaN or infinity: reject the result and keep the old knowledge.
        items, weights: (B, M) evidence from the histories, see `models.evidence.ease`; M = 0 without evidence.
    """

    vectors: np.ndarray
    codes: np.ndarray
    finite: np.ndarray
    items: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, vectors: Tensor, codes: Tensor) -> Generation:
        """Wrap vectors (B, K, d) and codes (B, S) as knowledge without evidence."""
        made = vectors.numpy()
        finite = np.asarray(np.isfinite(made).all(axis=(1, 2)))
        none = np.zeros((len(made), 0))
        return cls(
            np.where(finite[:, None, None], made, 0).astype(np.float32), codes.cpu().numpy(), finite,
            none.astype(np.int64), none.astype(np.float32))


def in_passes(
    make: Callable[[slice], Tensor], users: int, batch: int, shape: tuple[int, ...] = (1, 1),
) -> Tensor:
    """Return knowledge (users, K, d), in passes of `batch` users, or fewer if GPU memory is too small.

    Args:
        make: returns the knowledge for a slice of the users.
        shape: (K, d) of the result if there are no users.

    Raises:
        torch.OutOfMemoryError: one user does not fit.
    """
    parts: list[Tensor] = []
    done = 0
    while done < users:
        try:
            parts.append(make(slice(done, done + batch)).float().cpu())
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            torch.cuda.empty_cache()
            continue
        done += batch
    return torch.cat(parts) if parts else torch.zeros(0, *shape)
