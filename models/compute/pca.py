"""Principal components: states of a language model without the one large direction they share.

Mean-pooled states share a large direction and a few huge dimensions: cosines between them are all near 1, and a linear
map over them learns those dimensions first. Whitened, every kept component has unit variance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LIMIT = 4.0  # standard deviations: an outlier among short or odd texts would otherwise score far above everything
ROUNDING = 1e-6  # of the largest variance: with fewer texts than dimensions the rest is rounding


def whitening_axes(bank: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return what whitens states: their mean (H,) and leading principal axes (H, ≤ width), scaled; float64.

    Args:
        bank: (n, H) states; zero rows stand for "nothing there" and do not count.
    """
    present = bank[(bank != 0).any(1)].double()
    mean = present.sum(0) / max(1, len(present))
    x = present - mean
    variance, axes = torch.linalg.eigh(x.T @ x / max(1, len(x)))
    variance, axes = variance.flip(0)[:width], axes.flip(1)[:, :width]
    useful = variance > ROUNDING * variance[0].clamp(min=1e-12)
    return mean, axes * torch.where(useful, variance.clamp(min=1e-12).rsqrt(), 0.0)


def condense(embeddings: Tensor, width: int = 128) -> Tensor:
    """Return text embeddings (n, H) as their leading principal components (n, ≤ width), float32, within ±4.

    Zero rows (no text) stay zero and do not count; of fewer than two texts nothing is left.
    """
    present = (embeddings != 0).any(1)
    out = torch.zeros(len(embeddings), min(width, embeddings.shape[1]), dtype=torch.float32)
    if int(present.sum()) > 1:
        mean, axes = whitening_axes(embeddings, width)
        out[present] = ((embeddings[present].double() - mean) @ axes).clamp(-LIMIT, LIMIT).float()
    return out


class Whitening(nn.Module):
    """Projection of states (…, H) on the leading principal components of a bank, each of unit variance there."""

    mean: Tensor
    axes: Tensor

    def __init__(self, bank: Tensor, width: int = 128) -> None:
        super().__init__()
        mean, axes = whitening_axes(bank, width)
        self.register_buffer("mean", mean.float())
        self.register_buffer("axes", axes.float())

    @property
    def width(self) -> int:
        """Components kept."""
        return self.axes.shape[1]

    def forward(self, states: Tensor) -> Tensor:
        """Return (…, width), within ±4."""
        return ((states.float() - self.mean) @ self.axes).clamp(-LIMIT, LIMIT)
