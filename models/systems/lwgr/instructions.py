"""Personal soft instructions: K parallel codebooks with index back-propagation (LWGR, arXiv 2605.18771).

u_k = f_k(h); α_k^j = sim(u_k, C_k[j]); p_k = softmax(α_k/τ); e_k = onehot(argmax α_k) − sg[p_k] + p_k; z_k = e_kᵀ C_k;
t_k = W_k z_k. Through p_k every codeword of a codebook receives gradients, so few die; dead ones restart at projections
of users in the batch. Similarity is the cosine: with unit vectors, the nearest codeword in ‖u_k − C_k[j]‖² is also the
most similar one, and τ does not depend on the width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RESTART_EVERY = 50  # training steps between checks for dead codes
_DEAD = 0.02  # a code used less than this share of an equal share (1/m) is dead
_MEMORY = 0.98  # decay of the running usage: about 50 batches


class Instructions(nn.Module):
    """K soft instruction tokens per user, each chosen from its own codebook of m codewords.

    Attributes:
        usage: (K, m) running share of users per codeword.
    """

    norm: Tensor
    usage: Tensor
    steps: Tensor

    def __init__(
        self, dim: int, hidden: int, instructions: int, codes: int, norm: float, code_dim: int = 32,
        temperature: float = 0.2,
    ) -> None:
        """Make random codebooks.

        Args:
            dim: d, width of a user's hidden state.
            hidden: H, width of the language model.
            instructions: K.
            codes: m, codewords per codebook.
            norm: L2 norm of every token; use the norm of the language model's input vectors.
            code_dim: width of a codeword.
            temperature: τ of the softmax over a codebook.
        """
        super().__init__()
        self.temperature = temperature
        self.project = nn.Parameter(torch.randn(instructions, dim, code_dim) * dim**-0.5)
        self.codebooks = nn.Parameter(nn.functional.normalize(torch.randn(instructions, codes, code_dim), dim=-1))
        self.expand = nn.Parameter(torch.randn(instructions, code_dim, hidden) * hidden**-0.5)
        self.offset = nn.Parameter(torch.zeros(instructions, hidden))
        self.register_buffer("norm", torch.tensor(float(norm)))
        self.register_buffer("usage", torch.full((instructions, codes), 1.0 / codes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def start_at(self, vectors: Tensor) -> None:
        """Initialise instruction k near the input vector `vectors[k]` of the language model, (K, H)."""
        self.offset.copy_(nn.functional.normalize(vectors.float(), dim=-1))

    def similarity(self, user_hidden: Tensor) -> Tensor:
        """Return cosines (K, B, m) between projections of users (B, d) and codewords."""
        return self._unit(user_hidden) @ nn.functional.normalize(self.codebooks, dim=-1).transpose(1, 2)

    def codes(self, user_hidden: Tensor) -> Tensor:
        """Return the chosen codewords (B, K) int64 of users (B, d)."""
        return self.similarity(user_hidden).argmax(dim=-1).transpose(0, 1)

    def forward(self, user_hidden: Tensor) -> Tensor:
        """Return instruction tokens (B, K, H) for users (B, d), scaled to the language model's input norm."""
        units = self._unit(user_hidden)
        if self.training:
            self._restart(units.detach())
        codebooks = nn.functional.normalize(self.codebooks, dim=-1)
        alpha = units @ codebooks.transpose(1, 2)  # K, B, m
        soft = torch.softmax(alpha / self.temperature, dim=-1)
        hard = nn.functional.one_hot(alpha.argmax(dim=-1), alpha.shape[-1]).to(soft.dtype)
        if self.training:
            with torch.no_grad():
                self.usage.lerp_(hard.mean(dim=1), 1 - _MEMORY)
        chosen = (hard - soft.detach() + soft) @ codebooks
        tokens = chosen @ self.expand + self.offset[:, None]
        return (nn.functional.normalize(tokens, dim=-1) * self.norm).transpose(0, 1)

    def utilisation(self) -> Tensor:
        """Return (K,) in (0, 1]: the perplexity of each codebook's usage, as a share of its size."""
        share = self.usage / self.usage.sum(dim=-1, keepdim=True)
        return torch.exp(torch.special.entr(share).sum(dim=-1)) / share.shape[-1]

    def _unit(self, user_hidden: Tensor) -> Tensor:
        """Return projections (K, B, code width) of users (B, d), of unit length."""
        projected = torch.einsum("bd,kdc->kbc", user_hidden.to(self.project.dtype), self.project)
        return nn.functional.normalize(projected, dim=-1)

    @torch.no_grad()
    def _restart(self, units: Tensor) -> None:
        """Every `_RESTART_EVERY` steps, move dead codewords to projections of users in this batch."""
        self.steps += 1
        if int(self.steps) % _RESTART_EVERY:
            return
        for book, used, unit in zip(self.codebooks, self.usage, units, strict=True):
            dead = torch.nonzero(used < _DEAD / used.numel()).flatten()
            if len(dead) == 0:
                continue
            pick = torch.randint(len(unit), (len(dead),), device=unit.device)
            book[dead] = unit[pick]
            used[dead] = 1.0 / used.numel()
