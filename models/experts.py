"""Hybrid-expert adaptor: language-model states to recommender vectors (KAR, arXiv 2306.10933; its code, section 4).

Towers share some experts and have some of their own; each tower's gate is softmax(Linear(x)) over both kinds, and its
output the gated sum. KAR's towers are user and item knowledge, here they are the K instructions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HybridExperts(nn.Module):
    """One adaptor of `towers` towers from width `inner` to width `outer`, ReLU experts of one hidden layer."""

    def __init__(
        self, towers: int, inner: int, outer: int, shared: int = 2, specific: int = 2, width: int = 128,
    ) -> None:
        """Make random experts: `shared` ones for all towers, `specific` ones for each."""
        super().__init__()
        self.norm = nn.LayerNorm(inner)  # hidden states of a language model have a few huge dimensions
        self.shared_in = nn.Parameter(torch.randn(shared, inner, width) * (2 / inner) ** 0.5)
        self.shared_out = nn.Parameter(torch.randn(shared, width, outer) * width**-0.5)
        self.own_in = nn.Parameter(torch.randn(towers, specific, inner, width) * (2 / inner) ** 0.5)
        self.own_out = nn.Parameter(torch.randn(towers, specific, width, outer) * width**-0.5)
        self.gate = nn.Parameter(torch.zeros(towers, inner, shared + specific))

    def forward(self, states: Tensor) -> Tensor:
        """Return (B, towers, outer) of states (B, towers, inner)."""
        x = self.norm(states.to(self.gate.dtype))
        gate = torch.softmax(torch.einsum("bti,tie->bte", x, self.gate), dim=-1)
        common = torch.relu(torch.einsum("bti,eiw->btew", x, self.shared_in))
        own = torch.relu(torch.einsum("bti,teiw->btew", x, self.own_in))
        split = self.shared_in.shape[0]
        return (
            torch.einsum("btew,ewo,bte->bto", common, self.shared_out, gate[..., :split])
            + torch.einsum("btew,tewo,bte->bto", own, self.own_out, gate[..., split:]))
