"""Assembles stored item states into a user's history: which rows to read, and how far to rotate their keys."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.language.llm import LanguageModel


class HistoryMemory:
    """Prefix and items of a batch of users as a `Memory` (`models/language/attention.py`).

    Attributes:
        next_position: (B,) int64, position of the first token after the history.
    """

    new: Tensor | None = None
    record: list[tuple[Tensor, Tensor]] | None = None

    def __init__(self, llm: LanguageModel, states: Tensor, shift: np.ndarray, mask: np.ndarray) -> None:
        self._llm = llm
        self._states = states
        self._shift = torch.from_numpy(shift).to(llm.device)
        self.mask = torch.from_numpy(mask).to(llm.device)
        self.positions = torch.arange(mask.shape[1], device=llm.device).expand(mask.shape)
        self.next_position = self.mask.sum(dim=1)
        self._rotations: dict[str, tuple[Tensor, Tensor] | None] = {}

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return keys, rotated to their positions, and values, both (B, key heads, P, D)."""
        key, value = self._states[:, :, index].to(self._llm.dtype).permute(2, 0, 3, 1, 4)
        kinds = getattr(self._llm.decoder.config, "layer_types", None)
        kind = kinds[index] if kinds else ""
        if kind not in self._rotations:
            self._rotations[kind] = self._llm.rotation(self._shift, index)
        rotation = self._rotations[kind]
        return (rotate(key, *rotation) if rotation is not None else key), value


def layout(
    rows: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, prefix: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the token row of each state in a batch of histories, and the distance it moves.

    Args:
        rows: (B, H) item rows; −1 = none, anywhere in a row.
        offsets: (n,) first token row of each item.
        lengths: (n,) tokens of each item.
        prefix: number of prefix tokens, which are token rows 0 … prefix − 1.

    Returns:
        Token rows (B, P) int64, shifts (B, P) int64 from the encoded position, mask (B, P) bool; padding is last.
    """
    sizes = np.where(rows >= 0, lengths[rows], 0) if len(lengths) else np.zeros_like(rows)
    totals = sizes.sum(axis=1)
    width = prefix + int(totals.max(initial=0))
    index = np.zeros((len(rows), width), dtype=np.int64)
    shift = np.zeros((len(rows), width), dtype=np.int64)
    index[:, :prefix] = np.arange(prefix)
    mask = np.arange(width) < prefix + totals[:, None]
    users, slots = np.nonzero(sizes)
    counts = sizes[users, slots]
    starts = (np.cumsum(sizes, axis=1) - sizes)[users, slots]  # positions after the prefix
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    place = prefix + np.repeat(starts, counts) + within
    user = np.repeat(users, counts)
    index[user, place] = np.repeat(offsets[rows[users, slots]], counts) + within
    shift[user, place] = np.repeat(starts, counts)
    return index, shift, mask


def rotate(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return keys (B, heads, P, D) rotated by the angles (B, P, R ≤ D), with halves paired as in transformers."""
    size = cos.shape[-1]
    half = size // 2
    cos, sin = cos[:, None], sin[:, None]
    out = torch.empty_like(key)  # in place: a tenth of a generation's time; torch.cat takes a fifth
    left, right = key[..., :half], key[..., half:size]
    torch.mul(left, cos[..., :half], out=out[..., :half]).addcmul_(right, sin[..., :half], value=-1)
    torch.mul(right, cos[..., half:], out=out[..., half:size]).addcmul_(left, sin[..., half:])
    out[..., size:] = key[..., size:]
    return out
