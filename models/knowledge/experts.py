"""Hybrid-expert adaptor from language model states to recommender vectors (KAR, arXiv 2306.10933; its code, section 4).

Some experts are shared by all towers, others belong to one tower. Each tower's gate is softmax(Linear(x)) over both
kinds, and its output is the gated sum. KAR has towers for user and item knowledge; here they can also be the K
instructions.

States are first standardised per tower and dimension with running moments. In Gemma 3 270M's last states after a layer
norm, only 5% of the variance lies between users (1% in the middle layer). The rest is the same for all users and would
drown the signal that the experts need.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HybridExperts(nn.Module):
    """An adaptor with `towers` towers from width `inner` to width `outer`; ReLU experts with one hidden layer.

    Attributes:
        shape: (towers, outer).
        mean: (towers, inner) running mean of the states, updated in training.
        variance: (towers, inner) running variance.
    """

    mean: Tensor
    variance: Tensor
    steps: Tensor

    def __init__(
        self, towers: int, inner: int, outer: int, shared: int = 2, specific: int = 2, width: int = 128,
    ) -> None:
        """Create random experts: `shared` experts for all towers and `specific` experts for each tower."""
        super().__init__()
        self.shape = (towers, outer)
        self.register_buffer("mean", torch.zeros(towers, inner))
        self.register_buffer("variance", torch.ones(towers, inner))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.shared_in = nn.Parameter(torch.randn(shared, inner, width) * (2 / inner) ** 0.5)
        self.shared_out = nn.Parameter(torch.randn(shared, width, outer) * width**-0.5)
        self.own_in = nn.Parameter(torch.randn(towers, specific, inner, width) * (2 / inner) ** 0.5)
        self.own_out = nn.Parameter(torch.randn(towers, specific, width, outer) * width**-0.5)
        self.gate = nn.Parameter(torch.zeros(towers, inner, shared + specific))

    def forward(self, states: Tensor) -> Tensor:
        """Return (B, towers, outer) for states (B, towers, inner)."""
        x = self.standardise(states.to(self.gate.dtype))
        gate = torch.softmax(torch.einsum("bti,tie->bte", x, self.gate), dim=-1)
        common = torch.relu(torch.einsum("bti,eiw->btew", x, self.shared_in))
        own = torch.relu(torch.einsum("bti,teiw->btew", x, self.own_in))
        split = self.shared_in.shape[0]
        return (
            torch.einsum("btew,ewo,bte->bto", common, self.shared_out, gate[..., :split])
            + torch.einsum("btew,tewo,bte->bto", own, self.own_out, gate[..., split:]))

    def standardise(self, states: Tensor) -> Tensor:
        """Return states (B, towers, inner) minus their running mean, divided by their running deviation.

        Training uses running moments, too, so a user's vectors do not depend on the rest of the batch.
        """
        if self.training and len(states) > 1:
            with torch.no_grad():
                self.steps += 1
                rate = max(1 / float(self.steps), 0.01)  # average of the first 100 batches, then of about the last 100
                self.mean.lerp_(states.mean(dim=0), rate)
                self.variance.lerp_((states - self.mean).square().mean(dim=0), rate)
        # the floor avoids amplifying noise in dimensions that hardly vary
        floor = 0.01 * self.variance.mean(dim=-1, keepdim=True) + 1e-12
        return (states - self.mean) * torch.rsqrt(self.variance + floor)
