"""User knowledge: K soft instructions follow the history in the frozen language model (LWGR, arXiv 2605.18771).

The history's states do not depend on the instructions after it, so they come from the item cache. A generation costs K
tokens, and training gradients pass through K tokens only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.knowledge.experts import HybridExperts
from models.knowledge.generation import Generation, in_passes
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.systems.lwgr.instructions import Instructions
from schemas.settings import FitSettings

# Initial instructions: the factors KAR asks about, and the next choice.
_SEEDS = (" genre", " style", " maker", " purpose", " next", " mood", " period", " price", " quality", " theme")


class KnowledgeModel(nn.Module):
    """Instructions and hybrid experts around a frozen language model, which is not part of the module."""

    def __init__(self, dim: int, hidden: int, instructions: int = 5, codes: int = 64, norm: float = 1.0) -> None:
        """Make a random model.

        Args:
            dim: d, width of the user's hidden state and of the knowledge vectors.
            hidden: H, width of the language model.
            instructions: K.
            codes: m, codewords per codebook.
            norm: L2 norm of the language model's input vectors.
        """
        super().__init__()
        self.instructions = Instructions(dim, hidden, instructions, codes, norm)
        self.experts = HybridExperts(instructions, hidden, dim)

    @classmethod
    def create(cls, settings: FitSettings, llm: LanguageModel) -> KnowledgeModel:
        """Return an untrained model for this language model, with instructions initialised near descriptive words."""
        model = cls(settings.dim, llm.hidden_size, settings.instructions, settings.codes, llm.embedding_norm)
        words = [_SEEDS[k % len(_SEEDS)] for k in range(settings.instructions)]
        ids = [llm.tokenizer(word, add_special_tokens=False).input_ids[-1] for word in words]
        model.instructions.start_at(llm.embed(torch.tensor(ids, device=llm.device)).cpu())
        return model

    def forward(
        self, user_hidden: Tensor, histories: Tensor | np.ndarray, cache: ItemCache, llm: LanguageModel,
    ) -> Tensor:
        """Return knowledge (B, K, d) for users, each vector of L2 norm below 1.

        Args:
            user_hidden: (B, d) from the backbone.
            histories: (B, ≤H) item rows, oldest first, −1 = none; a history may be empty.
            cache: states of the catalogue's items.
            llm: the frozen language model that the cache was built with.
        """
        tokens = self.instructions(user_hidden)
        memory = cache.history(histories)
        positions = memory.next_position[:, None] + torch.arange(tokens.shape[1], device=llm.device)
        states = llm.run(tokens.to(llm.device), positions, memory, adapted=True)
        vectors = self.experts(states.to(user_hidden.device))
        # v/√(1+‖v‖²) is below 1 for every v and smooth; clipping would have no gradient along v
        return vectors * torch.rsqrt(1 + vectors.square().sum(dim=-1, keepdim=True))

    def codes(self, user_hidden: Tensor) -> Tensor:
        """Return the chosen codewords (B, K) int64 of users (B, d)."""
        return self.instructions.codes(user_hidden)

    @torch.no_grad()
    def generate(
        self, user_hidden: Tensor, histories: Tensor | np.ndarray, cache: ItemCache, llm: LanguageModel,
        batch: int = 16,
    ) -> Generation:
        """Return knowledge for any number of users, in passes of `batch` users, or fewer if GPU memory is too small.

        Raises:
            torch.OutOfMemoryError: one user does not fit.
        """
        training = self.training
        self.eval()
        plain = histories.cpu() if isinstance(histories, Tensor) else histories
        rows = np.asarray(plain, dtype=np.int64).reshape(len(user_hidden), -1 if len(user_hidden) else 0)
        try:
            vectors = in_passes(
                lambda part: self(user_hidden[part], rows[part], cache, llm), len(rows), batch, self.experts.shape)
            return Generation.of(vectors, self.codes(user_hidden))
        finally:
            self.train(training)
