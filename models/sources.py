"""Sources of users' knowledge: what a frozen language model makes of a history, as vectors of the backbone's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.composition import Moments, Source
from models.item_cache import ItemCache
from models.knowledge import KnowledgeModel
from models.llm import LanguageModel

THROUGH_LLM = 192  # moments per epoch where gradients pass through the language model
FROZEN = 1536  # where they do not


class CodebookSource(Source):
    """K soft instructions from parallel codebooks, read by the frozen language model (LWGR), through hybrid experts."""

    def __init__(self, knowledge: KnowledgeModel, cache: ItemCache, llm: LanguageModel, items: int) -> None:
        super().__init__()
        self.knowledge, self.items, self.snapshots = knowledge, items, THROUGH_LLM
        self._language = (llm, cache)  # a tuple: no part of the module, neither trained nor saved

    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, K, d)."""
        llm, cache = self._language
        return self.knowledge(moments.hidden.float(), moments.histories, cache, llm)

    def log(self) -> dict[str, float]:
        """Return the use of codes: perplexity as a share of a codebook's size, mean and least over codebooks."""
        used = self.knowledge.instructions.utilisation()
        return {"code_use": float(used.mean()), "code_use_least": float(used.min())}


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
