"""LWGR's knowledge source: soft instructions from parallel codebooks, read by the frozen language model."""

from __future__ import annotations

from torch import Tensor

from models.knowledge.sources import THROUGH_LLM, Moments, Source
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.systems.lwgr.knowledge import KnowledgeModel


class CodebookSource(Source):
    """K soft instructions from parallel codebooks, read by the frozen language model (LWGR), through hybrid experts."""

    def __init__(self, knowledge: KnowledgeModel, cache: ItemCache, llm: LanguageModel, items: int) -> None:
        super().__init__()
        self.knowledge, self.items, self.snapshots = knowledge, items, THROUGH_LLM
        self._language = (llm, cache)  # a tuple, so torch neither trains nor saves them

    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, K, d)."""
        llm, cache = self._language
        return self.knowledge(moments.hidden.float(), moments.histories, cache, llm)

    def log(self) -> dict[str, float]:
        """Return code usage: perplexity as a share of the codebook's size, mean and minimum over codebooks."""
        used = self.knowledge.instructions.utilisation()
        return {"code_use": float(used.mean()), "code_use_least": float(used.min())}
