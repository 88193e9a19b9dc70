"""The fused scorer: the reference's architecture plus item texts, user knowledge and evidence.

Items: v_i = e_i + W_t x_i, where x_i is the condensed text embedding of the item; used for reading histories and for
scoring. Users (LWGR's [BOS] fusion, residual, zero-initialised): h ← h + W_o MHA(LN h, W_p K). The attention has a
learned "nothing" key as well. Because of the zero initialisation, knowledge training starts exactly at the scorer
without knowledge.

The evidence z from the user's history (`models.evidence.ease`) is added to the scores and decays with every event that
the knowledge does not include. The reference's scores are mixed in, because two scorers have a smaller error than one:
s ← τ ((1 − r) s + r s_ref + g 2^(−age/h) z).

An item without training events has only its text; `models.scorers.backbone` describes how such items are trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.scorers.backbone import Backbone, ItemSide


@dataclass(frozen=True, slots=True)
class Evidence:
    """Item weights from B histories.

    Args:
        items: (B, M) int64 item rows, −1 = none.
        weights: (B, M) float32, 0 = none.
    """

    items: Tensor
    weights: Tensor

    def __getitem__(self, rows: Tensor) -> Evidence:
        """Return the evidence of the histories `rows` (m,) int64."""
        return Evidence(self.items[rows], self.weights[rows])


class KnowledgeAttention(nn.Module):
    """Cross-attention of hidden states over a user's K knowledge vectors and one learned "nothing" key.

    Attributes:
        earlier: compute as earlier releases did, which trained with a bias that zero knowledge added, too.
    """

    earlier = False

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
        """Return the update (B, T, d) of hidden (B, T, d) for knowledge (B, K, d)."""
        B, T, d = hidden.shape
        split = (B, -1, self.heads, d // self.heads)
        key, value = self.knowledge(knowledge).chunk(2, -1)
        if not self.earlier:
            value = value - self.knowledge.bias[d:]  # zero knowledge adds nothing
        key = torch.cat([key, self.nothing.expand(B, 1, d)], 1)
        value = F.pad(value, (0, 0, 0, 1))
        mixed = F.scaled_dot_product_attention(
            self.query(self.norm(hidden)).view(split).transpose(1, 2), key.view(split).transpose(1, 2),
            value.view(split).transpose(1, 2))
        return self.out(mixed.transpose(1, 2).reshape(B, T, d))


class FusedScorer(Backbone):
    """A backbone that reads item texts and user knowledge.

    Args:
        text: (n_items, x) condensed item texts (see `condense`), zero rows for items without text.
        fresh: (n_items,) bool, items without training events.
        n_items, dim, layers, heads, max_len, dropout: see `Backbone`; the cross-attention has the same number of heads.
    """

    text: Tensor
    evidence_gain: Tensor
    evidence_half_life: Tensor
    reference_share: Tensor
    temperature: Tensor

    def __init__(
        self, text: Tensor, fresh: Tensor | None, n_items: int, dim: int, layers: int, heads: int, max_len: int,
        dropout: float,
    ) -> None:
        super().__init__(n_items, dim, layers, heads, max_len, dropout, fresh)
        self.attention = KnowledgeAttention(dim, heads)
        self.text_vector = nn.Linear(text.shape[1], dim, bias=False)
        self.text_bias = nn.Linear(text.shape[1], 1, bias=False)
        # Texts have unit variance per component, so id and text vectors start with equal length.
        nn.init.normal_(self.text_vector.weight, std=0.02 * text.shape[1] ** -0.5)
        nn.init.zeros_(self.text_bias.weight)
        self.register_buffer("text", text, persistent=False)
        # g, h (events), r and τ, set by `models.calibration.parts`; the initial values have no effect.
        self.register_buffer("evidence_gain", torch.zeros(()))
        self.register_buffer("evidence_half_life", torch.full((), 1e9))
        self.register_buffer("reference_share", torch.zeros(()))
        self.register_buffer("temperature", torch.ones(()))

    def item_side(self, dropped: Tensor | None = None) -> ItemSide:
        """Return vectors and biases of the catalogue, including the text part; see `Backbone.item_side`."""
        vectors, bias = super().item_side(dropped)
        return vectors + self.text_vector(self.text), bias + self.text_bias(self.text).squeeze(-1)

    def fuse(self, hidden: Tensor, knowledge: Tensor | None) -> Tensor:
        """Return fused hidden states (B, T, d) for hidden (B, T, d) and knowledge (B, K, d); None = no knowledge."""
        return hidden if knowledge is None else hidden + self.attention(hidden, knowledge)

    def weigh(self, logits: Tensor, reference: Tensor, evidence: Evidence, age: Tensor) -> Tensor:
        """Return logits (m, n) combined with the reference's logits and evidence (m, M) that is `age` (m,) events old.

        Args:
            reference: (m, n) logits from behaviour alone; a constant per row has no effect.
        """
        faded = self.evidence_gain * 2.0 ** (-age / self.evidence_half_life)
        added = torch.where(evidence.items >= 0, evidence.weights, 0.0) * faded[:, None]
        joined = torch.lerp(logits, reference, self.reference_share)
        return joined.scatter_add_(1, evidence.items.clamp(min=0), added).mul_(self.temperature)


