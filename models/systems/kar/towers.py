"""KAR's two towers, one at a time: knowledge of users and knowledge of items through experts that both share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.knowledge.experts import HybridExperts
from models.scorers.training import FULL

SHARED, SPECIFIC = 2, 5
USER, ITEM = 0, 1  # towers
BLOCK = 512  # items whose hidden layer (896 wide) stays in a core's cache


class _SparseTower(torch.autograd.Function):
    """Vectors of every row by one tower, whose way back is computed for the rows alone that a loss has used.

    A step of a large catalogue reads and scores a few thousand of its items: of Beauty's 12,101 a third. Which, is not
    known before; so the way there keeps nothing, a block at a time, and the way back goes the used rows' way again.
    """

    @staticmethod
    def forward(ctx: Any, towers: Towers, tower: int, states: Tensor, *weights: Tensor) -> Tensor:
        """Return (n, outer) of states (n, inner); `weights`, the parameters of `towers`, are passed for gradients."""
        ctx.towers, ctx.tower, ctx.states = towers, tower, states
        with torch.no_grad():
            return torch.cat([towers.tower(part, tower) for part in states.split(BLOCK)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients of the weights; states get none."""
        used = (gradients[0] != 0).any(1).nonzero()[:, 0]
        with torch.enable_grad():
            vectors = ctx.towers.tower(ctx.states[used], ctx.tower)
        return None, None, None, *torch.autograd.grad(vectors, tuple(ctx.towers.parameters()), gradients[0][used])


class Towers(HybridExperts):
    """The hybrid experts, one tower at a time."""

    def tower(self, states: Tensor, tower: int) -> Tensor:
        """Return (…, outer) of states (…, inner) by one tower."""
        # Two plain matrix products: the gate goes in before the second one, whose sum runs over experts too.
        gate = torch.softmax(states @ self.gate[tower], -1)
        into = torch.cat([self.shared_in, self.own_in[tower]])
        out = torch.cat([self.shared_out, self.own_out[tower]])
        inner = torch.relu(states @ into.permute(1, 0, 2).flatten(1)).unflatten(-1, into.shape[::2])
        return (inner * gate[..., None]).flatten(-2) @ out.flatten(0, 1)

    def whole_catalogue(self, states: Tensor, tower: int) -> Tensor:
        """Return `tower` of a catalogue's states (n, inner), which get no gradient.

        Sparsely where a step does not use every row: Beauty on one CPU core .38 s instead of .81 s a step.
        """
        if torch.is_grad_enabled() and len(states) > FULL and states.device.type == "cpu":
            return _SparseTower.apply(self, tower, states, *self.parameters())
        return self.tower(states, tower)
