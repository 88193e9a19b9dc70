"""Principal components: states of a language model without the one large direction they share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def condense(embeddings: Tensor, width: int = 128) -> Tensor:
    """Return text embeddings (n, H) as their leading principal components (n, ≤ width), each of unit variance.

    Mean-pooled states of a language model share one large direction and a few huge dimensions; unwhitened, a linear
    map over them learns those first. Zero rows (no text) stay zero and do not count.
    """
    present = (embeddings != 0).any(1)
    out = torch.zeros(len(embeddings), min(width, embeddings.shape[1]), dtype=torch.float32)
    x = embeddings[present].double()
    if len(x) < 2:
        return out
    x = x - x.mean(0)
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    variance, axes = variance.flip(0)[: out.shape[1]], axes.flip(1)[:, : out.shape[1]]
    useful = variance > 1e-6 * variance[0]  # fewer texts than dimensions: the rest is rounding
    scaled = (x @ axes) * torch.where(useful, variance.clamp(min=1e-300).rsqrt(), 0.0)
    # An outlier among short or odd texts would otherwise score far above everything.
    out[present] = scaled.clamp(-4, 4).float()
    return out


class Whitening(nn.Module):
    """Projection of states (…, H) on the leading principal components of a bank, each of unit variance there.

    States of a language model share one large direction; cosines between them are all near 1 until it is taken out.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, bank: Tensor, width: int = 128) -> None:
        super().__init__()
        present = bank[(bank != 0).any(1)].double()
        mean = present.mean(0) if len(present) else torch.zeros(bank.shape[1], dtype=torch.float64)
        x = present - mean
        variance, axes = torch.linalg.eigh(x.T @ x / max(1, len(x)))
        variance, axes = variance.flip(0)[:width], axes.flip(1)[:, :width]
        useful = variance > 1e-6 * variance[0].clamp(min=1e-12)
        self.register_buffer("mean", mean.float())
        self.register_buffer("axes", (axes * torch.where(useful, variance.clamp(min=1e-12).rsqrt(), 0.0)).float())

    @property
    def width(self) -> int:
        """Components kept."""
        return self.axes.shape[1]

    def forward(self, states: Tensor) -> Tensor:
        """Return (…, width), within ±4."""
        return ((states.float() - self.mean) @ self.axes).clamp(-4, 4)
