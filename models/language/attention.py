"""Attention of a few new tokens over stored states, for any transformers decoder with pluggable attention.

transformers' own way (a `Cache` that joins old and new keys, then SDPA) copies the whole history in every layer and
back-propagates into it. Here old and new keys are scored separately and joined only in the softmax. The history is read
in place, gets no gradient, and may be padded, moved or shared by the batch.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "freshet"


class Memory(Protocol):
    """States that precede the tokens of a forward pass.

    Attributes:
        mask: (B or 1, P) bool, False = padding.
        positions: (B or 1, P) int64, position of each state in the sequence.
        new: (B, T) bool, False = padding among the new tokens; None = no padding.
        record: if a list, every layer appends its new keys and values (B, heads, T, D), keys rotated.
    """

    mask: Tensor
    positions: Tensor
    new: Tensor | None
    record: list[tuple[Tensor, Tensor]] | None

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (B or 1, heads, P, D) of a layer, keys rotated to `positions`."""
        ...


class Blank:
    """A memory without states: plain causal attention over the new tokens."""

    def __init__(self, device: torch.device, record: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.mask = torch.ones(1, 0, dtype=torch.bool, device=device)
        self.positions = torch.zeros(1, 0, dtype=torch.int64, device=device)
        self.new: Tensor | None = None
        self.record = record

    def layer(self, index: int) -> tuple[Tensor, Tensor]:  # noqa: D102
        raise IndexError(f"no states of layer {index}: this memory is empty")


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
    softcap: float | None = None, memory: Memory | None = None, **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention output (B, T, heads, D) of new tokens over `memory` and, causally, over each other.

    Args:
        module: the attention layer; its `layer_idx` chooses the memory's layer.
        query: (B, heads, T, D), rotated.
        key: (B, key-value heads, T, D), rotated.
        value: (B, key-value heads, T, D).
        attention_mask: unused, the memory carries its own.
        scaling: of the scores; None = 1/√D.
        dropout: unused, the language model is frozen.
        sliding_window: tokens a layer looks back, itself included; None = all.
        softcap: bound of the scores (Gemma 2); None = none.
        memory: earlier states; None = none.
    """
    memory = memory if memory is not None else Blank(query.device)
    batch, heads, new, size = query.shape
    groups = heads // key.shape[1]
    scale = scaling if scaling is not None else size**-0.5
    # Heads that share keys become additional queries, so keys are never repeated.
    grouped = (query * scale).reshape(batch, key.shape[1], groups * new, size)
    if memory.record is not None:
        memory.record.append((key, value))
    scores = grouped @ key.transpose(2, 3)
    allowed = own_mask(new, memory.new, sliding_window, query.device)
    past_value = None
    old = memory.mask.shape[1]
    if old:
        past_key, past_value = memory.layer(int(module.layer_idx))  # type: ignore[arg-type]
        scores = torch.cat([grouped @ past_key.transpose(2, 3), scores], dim=3)
        past = past_mask(memory, new, sliding_window)
        shape = (max(past.shape[0], allowed.shape[0]), new, -1)
        allowed = torch.cat([past.expand(shape), allowed.expand(shape)], dim=2)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(batch, key.shape[1], groups, new, -1)
    scores = scores.masked_fill(~allowed[:, None, None], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype).flatten(2, 3)
    out = weights[..., old:] @ value
    if past_value is not None:
        out = out + weights[..., :old] @ past_value
    return out.view(batch, heads, new, size).transpose(1, 2), None


def own_mask(new: int, present: Tensor | None, window: int | None, device: torch.device) -> Tensor:
    """Return (1 or B, T, T) bool: whether a new token (row) may attend to another (column)."""
    steps = torch.arange(new, device=device)
    back = steps[:, None] - steps[None, :]
    allowed = (back >= 0)[None]
    if window is not None and window < new:
        allowed = allowed & (back < window)[None]
    if present is not None:  # a padded token still attends to itself: a row of only −∞ would give NaN
        allowed = allowed & (present[:, None, :] | (back == 0)[None])
    return allowed


def past_mask(memory: Memory, new: int, window: int | None) -> Tensor:
    """Return (B or 1, T, P) bool: whether a new token may attend to a stored state. New tokens follow the last state.
    """
    allowed = memory.mask[:, None, :].expand(-1, new, -1)
    if window is None or memory.mask.shape[1] + new <= window:
        return allowed
    last = torch.where(memory.mask, memory.positions, -1).amax(dim=1, keepdim=True)
    place = last + 1 + torch.arange(new, device=memory.mask.device)[None]
    return allowed & (place[:, :, None] - memory.positions[:, None, :] < window)


def register() -> None:
    """Register `attend` with transformers as attention implementation "freshet"; repeated calls are harmless."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, no_mask)


def no_mask(*_: Any, **__: Any) -> None:
    """Return no mask: `attend` builds its own from the memory."""
