"""Events grouped by user in order of time, and the windows that a backbone reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import Events, IntArray


@dataclass(frozen=True, slots=True)
class Sequences:
    """Events grouped by user, oldest first.

    Args:
        item: (n,) item rows.
        index: (n,) position of each in the `Events` it came from.
        offsets: (users + 1,) user u has rows offsets[u]:offsets[u + 1].
    """

    item: IntArray
    index: IntArray
    offsets: IntArray

    @classmethod
    def of(cls, events: Events, n_users: int) -> Sequences:
        """Group time-ordered events by user."""
        index = np.argsort(events.user, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(events.user, minlength=n_users))])
        return cls(events.item[index], index, offsets)

    def lengths(self) -> IntArray:
        """Return the number of events of each user, (users,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of users' sequences: rows start:stop are read in order, rows first:stop are predicted.

    All (w,), rows of a `Sequences`. Row r is predicted from rows start:r.
    """

    start: IntArray
    first: IntArray
    stop: IntArray

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: IntArray) -> Windows:
        return Windows(self.start[rows], self.first[rows], self.stop[rows])


def windows(sequences: Sequences, max_len: int, stride: int, begin: IntArray | None = None) -> Windows:
    """Return windows that predict every row from `begin` on exactly once, each from at most `max_len` earlier rows.

    A row with more than `max_len` predecessors is predicted from the newest max_len − stride + 1 … max_len of them.
    Stride 1 matches serving with a history of `max_len` items exactly, but needs one window per row.

    Args:
        begin: (users,) first row to predict for each user; None = all.
    """
    low, high = sequences.offsets[:-1], sequences.offsets[1:]
    begin = low if begin is None else begin
    start: list[IntArray] = []
    first: list[IntArray] = []
    stop: list[IntArray] = []
    active = begin < high
    low, high, at = low[active], high[active], begin[active]
    while len(at):
        # The first window covers the user's first max_len + 1 rows; later windows advance by `stride` rows.
        until = np.minimum(np.where(at - low <= max_len, np.maximum(low + max_len + 1, at + 1), at + stride), high)
        start.append(np.maximum(low, until - 1 - max_len))
        first.append(at)
        stop.append(until)
        keep = until < high
        low, high, at = low[keep], high[keep], until[keep]
    if not start:
        empty = np.zeros(0, np.int64)
        return Windows(empty, empty, empty)
    return Windows(np.concatenate(start), np.concatenate(first), np.concatenate(stop))


def batches(part: Windows, slots: int, rng: np.random.Generator | None = None) -> list[IntArray]:
    """Return rows of `part` in batches of about `slots` padded slots, grouping windows of similar length.

    Args:
        rng: shuffles windows of equal length and the batches; None = longest first, deterministic.
    """
    length = part.stop - part.start
    # Sorting by coarse length limits padding and still leaves batches random.
    order = np.argsort(-length, kind="stable") if rng is None else np.lexsort((rng.random(len(part)), -(length // 4)))
    out = []
    at = 0
    while at < len(order):
        size = max(1, slots // int(length[order[at]]))
        out.append(order[at : at + size])
        at += size
    if rng is not None:
        rng.shuffle(out)
    return out


def tensors(sequences: Sequences, part: Windows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the backbone's input for a batch of windows.

    Returns:
        Tokens (B, T) to read, padded with 0; and for the m predicted rows: row of `tokens`, slot of the hidden state,
        and row of the `Sequences` (which holds the target item), each (m,).
    """
    length = part.stop - part.start
    width = int(length.max())
    slot = np.arange(width)
    rows = part.start[:, None] + slot
    inside = slot < length[:, None]
    read = slot < length[:, None] - 1  # the newest row is only a target
    tokens = np.where(read, sequences.item[np.where(inside, rows, 0)] + 1, 0)[:, : max(1, width - 1)]
    predicted = inside & (rows >= part.first[:, None])
    where, slots = np.nonzero(predicted)
    return (
        torch.from_numpy(np.ascontiguousarray(tokens)), torch.from_numpy(where), torch.from_numpy(slots),
        torch.from_numpy(rows[predicted]),
    )
