"""CoCo's knowledge: soft prompts from one codebook, and cross-attention over the language model's states.

Reconstructed from arXiv 2510.14257. Slot s takes the codeword nearest to f_s(u), with a straight-through gradient and
L_vq = ‖sg[f] − E_j‖² + β‖f − sg[E_j]‖². The language model reads the prompts after the cached history. Knowledge is the
mean over prompts of CrossAttn(Q = prompt, K/V = language model states of the prompts and of the history's items). The
language model's LoRA is trained only on events where knowledge did harm (`models.knowledge.objectives.Judged`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.compute.pca import Whitening
from models.knowledge.experts import HybridExperts
from models.knowledge.sources import THROUGH_LLM, Moments, Source
from models.language import adapters
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel

BETA = 0.25  # weight of the commitment loss
RANK = 8
ADAPTER = "prompted"
RESTART_EVERY = 25  # steps
DEAD = 0.1  # codewords used less than this share of an equal share are dead


class Codebook(nn.Module):
    """One codebook for all prompt slots.

    Attributes:
        usage: (m,) running share of uses per codeword.
    """

    usage: Tensor
    steps: Tensor

    def __init__(self, dim: int, slots: int, codes: int) -> None:
        super().__init__()
        self.project = nn.Parameter(torch.randn(slots, dim, dim) * dim**-0.5)
        self.words = nn.Parameter(torch.randn(codes, dim))
        self.register_buffer("usage", torch.full((codes,), 1.0 / codes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, user: Tensor) -> tuple[Tensor, Tensor]:
        """Return codewords (B, S, d) for users (B, d), with a straight-through gradient, and L_vq."""
        wanted = torch.einsum("bd,sde->bse", F.layer_norm(user, user.shape[-1:]), self.project)
        flat = wanted.flatten(0, 1)
        chosen = self._nearest(flat.detach())
        word = self.words[chosen].view_as(wanted)
        if self.training:
            self._count(chosen, flat.detach())
        loss = F.mse_loss(word, wanted.detach()) + BETA * F.mse_loss(wanted, word.detach())
        return wanted + (word - wanted).detach(), loss

    @torch.no_grad()
    def codes(self, user: Tensor) -> Tensor:
        """Return the chosen codewords (B, S) int64 of users (B, d)."""
        wanted = torch.einsum("bd,sde->bse", F.layer_norm(user, user.shape[-1:]), self.project)
        return self._nearest(wanted.flatten(0, 1)).view(wanted.shape[:2])

    def _nearest(self, flat: Tensor) -> Tensor:
        return torch.cdist(flat, self.words).argmin(1)

    @torch.no_grad()
    def _count(self, chosen: Tensor, wanted: Tensor) -> None:
        """Update the usage of codewords; dead ones restart at projections of users."""
        share = torch.bincount(chosen, minlength=len(self.words)) / max(1, len(chosen))
        self.usage.lerp_(share, 0.02)
        self.steps += 1
        if int(self.steps) % RESTART_EVERY:
            return
        dead = torch.nonzero(self.usage < DEAD / len(self.words)).flatten()
        pick = torch.randint(len(wanted), (len(dead),), device=wanted.device)
        self.words[dead] = wanted[pick].to(self.words.dtype)  # bfloat16 under autocast
        self.usage[dead] = 1.0 / len(self.words)


class Adapter(nn.Module):
    """A LoRA adapter's weights as a module that is trained and saved but stays on the language model's device."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        return self


class PromptSource(Source):
    """CoCo's source: one knowledge vector per user.

    Args:
        dim: d.
        slots: S, prompts per user.
        codes: m, codewords.
        cache, llm: states of the item texts, and the language model. The source adds its own LoRA adapter to the
            model, which is active only in this source.
        items: H, number of items read from a history.
    """

    texts: Tensor

    def __init__(
        self, dim: int, slots: int, codes: int, cache: ItemCache, llm: LanguageModel, items: int,
    ) -> None:
        super().__init__()
        self.items, self.snapshots = items, THROUGH_LLM
        self._language = (llm, cache)
        adapters.remove(llm.decoder, ADAPTER)  # left over from an earlier source
        adapters.create(llm.decoder, ADAPTER, RANK)
        self.adapter = Adapter(adapters.trainable(llm.decoder, ADAPTER))
        adapters.choose(llm.decoder, llm.adapter)
        self.book = Codebook(dim, slots, codes)
        self.expand = nn.Linear(dim, llm.hidden_size)
        self.experts = HybridExperts(slots, llm.hidden_size, dim, shared=1, specific=1)
        embeddings = torch.from_numpy(cache.embeddings)
        whiten = Whitening(embeddings)
        self.register_buffer("texts", whiten(embeddings), persistent=False)
        self.item = nn.Linear(whiten.width, dim)
        self.query, self.pair = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self._vq = torch.zeros(())

    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, 1, d)."""
        llm, cache = self._language
        prompts, self._vq = self.book(moments.hidden.float())
        tokens = F.normalize(self.expand(prompts), dim=-1) * llm.embedding_norm
        memory = cache.history(moments.histories)
        positions = memory.next_position[:, None] + torch.arange(tokens.shape[1], device=llm.device)
        with self._in_use(llm):
            states = llm.run(tokens.to(llm.device), positions, memory, adapted=True)
        rows = torch.from_numpy(moments.histories).to(prompts.device)
        answer = self.experts(states.to(prompts.device).float())
        texts = self.item(self.texts[rows.clamp(min=0)])
        key, value = self.pair(torch.cat([answer, texts], 1)).chunk(2, -1)
        mask = torch.cat([torch.ones(answer.shape[:2], dtype=torch.bool, device=rows.device), rows >= 0], 1)
        read = F.scaled_dot_product_attention(self.query(prompts), key, value, attn_mask=mask[:, None])
        return read.mean(1, keepdim=True)

    def auxiliary(self) -> Tensor:
        """Return L_vq of the last batch."""
        return self._vq

    def masked(self) -> list[nn.Parameter]:
        """Return the LoRA weights, which are trained on contradicted events only."""
        return list(self.adapter.weights)

    def log(self) -> dict[str, float]:
        """Return the perplexity of codeword usage as a share of the codebook's size, and LoRA's norm."""
        share = self.book.usage / self.book.usage.sum()
        size = sum(float(weight.detach().square().sum()) for weight in self.adapter.weights[1::2]) ** 0.5
        return {"code_use": float(torch.exp(torch.special.entr(share).sum()) / len(share)), "lora_norm": size}

    @contextmanager
    def _in_use(self, llm: LanguageModel) -> Iterator[None]:
        """Activate this source's adapter inside the block. Choosing it freezes the decoder, so flags are restored."""
        used, learns = llm.adapter, [weight.requires_grad for weight in self.adapter.weights]
        llm.use_adapter(ADAPTER)
        self._learn(learns)
        try:
            yield
        finally:
            llm.use_adapter(used)
            self._learn(learns)

    def _learn(self, flags: list[bool]) -> None:
        for weight, flag in zip(self.adapter.weights, flags, strict=True):
            weight.requires_grad_(flag)


class GatedFusion(nn.Module):
    """h ← h + σ(g) ⊙ W (φ[h; k] − φ[h; 0]), W = 0 at the start; zero knowledge changes nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inner, self.gate = nn.Linear(2 * dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.out = nn.Linear(2 * dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, knowledge: Tensor) -> Tensor:
        """Return the update (B, T, d) of hidden (B, T, d) for knowledge (B, 1, d)."""
        state = self.norm(hidden)
        both = torch.cat([state, knowledge.expand(-1, hidden.shape[1], -1)], -1)
        without = F.gelu(self.inner(torch.cat([state, torch.zeros_like(state)], -1)))
        return torch.sigmoid(self.gate(both)) * self.out(F.gelu(self.inner(both)) - without)
