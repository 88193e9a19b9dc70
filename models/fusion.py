"""The fused scorer: the frozen reference, plus what knowledge adds to it on both sides of the dot product.

User side (LWGR's [BOS] fusion, residual and zero-initialised): h ← h + W_o MHA(LN h, W_p K), where the attention may
also look at nothing. Item side: v_i = e_i + W_t x_i with x_i the item's condensed text, W_t zero at first. Training
therefore starts exactly at the reference.

An item that no event of the training part shows (Beauty: 3% of the catalogue, 18% of later events) has only its text
to go by. That path is learned by dropping the id vectors of some known items (`dropped`), which stand in for new ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.backbone import Backbone


class KnowledgeAttention(nn.Module):
    """Cross-attention of hidden states over a user's K knowledge vectors and one learned "nothing"."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.knowledge = nn.Linear(dim, 2 * dim)
        self.nothing = nn.Parameter(torch.zeros(dim))
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, knowledge: Tensor) -> Tensor:
        """Return the change (B, T, d) of hidden (B, T, d) for knowledge (B, K, d)."""
        B, T, d = hidden.shape
        split = (B, -1, self.heads, d // self.heads)
        key, value = self.knowledge(knowledge).chunk(2, -1)
        key = torch.cat([key, self.nothing.expand(B, 1, d)], 1)
        value = F.pad(value, (0, 0, 0, 1))
        mixed = F.scaled_dot_product_attention(
            self.query(self.norm(hidden)).view(split).transpose(1, 2), key.view(split).transpose(1, 2),
            value.view(split).transpose(1, 2))
        return self.out(mixed.transpose(1, 2).reshape(B, T, d))


class FusedScorer(nn.Module):
    """Knowledge and item texts on top of a frozen reference.

    Args:
        reference: gives item vectors and biases; never changed, not part of this module's state.
        text: (n, x) condensed item texts (see `condense`), zero rows where there is none.
        fresh: (n,) bool, items no training event shows.
        heads: of the cross-attention.
    """

    text: Tensor
    fresh: Tensor
    typical: Tensor

    def __init__(self, reference: Backbone, text: Tensor, fresh: Tensor, heads: int) -> None:
        super().__init__()
        self.attention = KnowledgeAttention(reference.dim, heads)
        self.text_out = nn.Linear(text.shape[1], reference.dim, bias=False)
        nn.init.zeros_(self.text_out.weight)
        self.fresh_vector = nn.Parameter(torch.zeros(reference.dim))
        self.fresh_bias = nn.Parameter(torch.zeros(()))
        self._reference = [reference]  # in a list: not a submodule
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("fresh", fresh)
        with torch.no_grad():
            # What an id vector and bias look like that no event has shaped; the stand-in for dropped ones.
            like = fresh if bool(fresh.any()) else torch.ones_like(fresh)
            typical = torch.cat([reference.item_vectors(), reference.bias[:, None]], 1)[like].mean(0)
        self.register_buffer("typical", typical)

    @property
    def reference(self) -> Backbone:
        """The frozen behaviour model."""
        return self._reference[0]

    def fuse(self, hidden: Tensor, knowledge: Tensor | None) -> Tensor:
        """Return fused hidden states (B, T, d) of hidden (B, T, d) and knowledge (B, K, d); None = no knowledge."""
        return hidden if knowledge is None else hidden + self.attention(hidden, knowledge)

    def item_side(self, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return item vectors (n, d) and biases (n,).

        Args:
            dropped: (n,) bool, items to be treated as if no event had ever shown them.
        """
        vectors, bias, fresh = self.reference.item_vectors().detach(), self.reference.bias.detach(), self.fresh
        if dropped is not None:
            vectors = torch.where(dropped[:, None], self.typical[:-1], vectors)
            bias = torch.where(dropped, self.typical[-1], bias)
            fresh = fresh | dropped
        vectors = vectors + self.text_out(self.text) + fresh[:, None] * self.fresh_vector
        return vectors, bias + fresh * self.fresh_bias

    def scores(self, fused: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Return logits over the whole catalogue, (…, n), for fused hidden states (…, d)."""
        vectors, bias = self.item_side(dropped)
        return F.linear(fused, vectors, bias)


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
