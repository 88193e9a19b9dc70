"""Whitened principal components of language model states.

Mean-pooled states share one large direction and a few huge dimensions: all cosines are near 1, and a linear map learns
those dimensions first. After whitening, every kept component has unit variance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LIMIT = 4.0  # standard deviations; without it outliers among short or odd texts score far above everything else
ROUNDING = 1e-6  # of the largest variance; with fewer texts than dimensions, smaller components are rounding errors


def whitening_axes(bank: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the mean (H,) and the scaled leading principal axes (H, ≤ width) that whiten states; float64.

    Args:
        bank: (n, H) states; zero rows mean "no state" and are ignored.
    """
    present = bank[(bank != 0).any(1)].double()
    mean = present.sum(0) / max(1, len(present))
    x = present - mean
    variance, axes = torch.linalg.eigh(x.T @ x / max(1, len(x)))
    variance, axes = variance.flip(0)[:width], axes.flip(1)[:, :width]
    useful = variance > ROUNDING * variance[0].clamp(min=1e-12)
    return mean, axes * torch.where(useful, variance.clamp(min=1e-12).rsqrt(), 0.0)


def condense(embeddings: Tensor, width: int = 128) -> Tensor:
    """Return the leading principal components (n, ≤ width) of text embeddings (n, H), float32, within ±4.

    Zero rows (no text) are ignored and stay zero. With fewer than two texts the result is zero.
    """
    present = (embeddings != 0).any(1)
    out = torch.zeros(len(embeddings), min(width, embeddings.shape[1]), dtype=torch.float32)
    if int(present.sum()) > 1:
        mean, axes = whitening_axes(embeddings, width)
        out[present] = ((embeddings[present].double() - mean) @ axes).clamp(-LIMIT, LIMIT).float()
    return out


class Whitening(nn.Module):
    """Projects states (…, H) onto the leading principal components of a bank, scaled to unit variance on the bank."""

    mean: Tensor
    axes: Tensor

    def __init__(self, bank: Tensor, width: int = 128) -> None:
        super().__init__()
        mean, axes = whitening_axes(bank, width)
        self.register_buffer("mean", mean.float())
        self.register_buffer("axes", axes.float())

    @property
    def width(self) -> int:
        """Number of components kept."""
        return self.axes.shape[1]

    def forward(self, states: Tensor) -> Tensor:
        """Return (…, width), within ±4."""
        return ((states.float() - self.mean) @ self.axes).clamp(-LIMIT, LIMIT)
