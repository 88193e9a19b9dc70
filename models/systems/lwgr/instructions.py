"""Personal soft instructions: K parallel codebooks with index back-propagation (LWGR, arXiv 2605.18771).

u_k = f_k(h); α_k^j = sim(u_k, C_k[j]); p_k = softmax(α_k/τ); e_k = onehot(argmax α_k) − sg[p_k] + p_k; z_k = e_kᵀ C_k;
t_k = W_k z_k. Through p_k every codeword of a codebook takes part in every gradient, so few die; those that
do start again at projections of the batch. Similarity is the cosine: with unit vectors the nearest codeword in
‖u_k − C_k[j]‖² and the most similar one are the same, and τ means the same whatever the width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RESTART_EVERY = 50  # training steps between looks for dead codes
_DEAD = 0.02  # a code used less than this share of its fair share (1/m) is dead
_MEMORY = 0.98  # of the running use of codes: some 50 batches


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
            norm: L2 norm every token gets, that of the language model's own input vectors.
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
        """Let instruction k start near the language model's own input vector `vectors[k]` (K, H)."""
        self.offset.copy_(nn.functional.normalize(vectors.float(), dim=-1))

    def similarity(self, user_hidden: Tensor) -> Tensor:
        """Return the cosine (K, B, m) of users' projections (from (B, d)) and codewords."""
        return self._unit(user_hidden) @ nn.functional.normalize(self.codebooks, dim=-1).transpose(1, 2)

    def codes(self, user_hidden: Tensor) -> Tensor:
        """Return the chosen codewords (B, K) int64 of users (B, d)."""
        return self.similarity(user_hidden).argmax(dim=-1).transpose(0, 1)

    def forward(self, user_hidden: Tensor) -> Tensor:
        """Return the instruction tokens (B, K, H) of users (B, d), each of the language model's input norm."""
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
        """Return (K,) in (0, 1]: the perplexity of each codebook's use, as a share of its size."""
        share = self.usage / self.usage.sum(dim=-1, keepdim=True)
        return torch.exp(torch.special.entr(share).sum(dim=-1)) / share.shape[-1]

    def _unit(self, user_hidden: Tensor) -> Tensor:
        """Return users' projections (K, B, code width), each of length 1."""
        projected = torch.einsum("bd,kdc->kbc", user_hidden.to(self.project.dtype), self.project)
        return nn.functional.normalize(projected, dim=-1)

    @torch.no_grad()
    def _restart(self, units: Tensor) -> None:
        """Put dead codewords on projections of users of this batch, from time to time."""
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
