"""Events grouped by user in order of time, and the windows that a backbone reads.

Events of one user at the same time are *tied*. Nothing could be recommended between them, so none of them may be
predicted from another one: 43% of the predicted events on Amazon Beauty are tied with the user's previous event, and
the order of ties in its file gives the answer away (ties ascend by item).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import BoolArray, Events, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Sequences:
    """Events grouped by user, oldest first.

    Args:
        item: (n,) item rows.
        index: (n,) position of each in the `Events` it came from.
        offsets: (users + 1,) user u has rows offsets[u]:offsets[u + 1].
        tie: (n,) first row of the user's events at the same time; None = every row counts as later than the one before.
    """

    item: IntArray
    index: IntArray
    offsets: IntArray
    tie: IntArray | None = None

    @classmethod
    def of(cls, events: Events, n_users: int, key: FloatArray | None = None, strict: bool = True) -> Sequences:
        """Group time-ordered events by user.

        Args:
            key: (n,) order of tied events, see `tie_order`; None = the order of the file.
            strict: whether tied events are predicted from strictly earlier events only. False = from all rows before
                them, as most published figures.
        """
        order = np.arange(len(events)) if key is None else key
        index = np.lexsort((order, events.time, events.user))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(events.user, minlength=n_users))])
        return cls(events.item[index], index, offsets,
                   _first_of_tie(events.user[index], events.time[index]) if strict else None)

    def lengths(self) -> IntArray:
        """Return the number of events of each user, (users,)."""
        return np.diff(self.offsets)

    def user(self, rows: IntArray) -> IntArray:
        """Return the user (m,) of each row (m,)."""
        return np.searchsorted(self.offsets, rows, "right") - 1

    def known(self, rows: IntArray) -> IntArray:
        """Return for each row (m,) the first row of its tie (m,): what was known before it are the user's rows below.

        A result is its own result, so it does no harm to ask twice.
        """
        return rows if self.tie is None else self.tie[rows]

    def with_history(self) -> BoolArray:
        """Return (n,) bool: whether the user has an event before the row that it may be predicted from."""
        rows = np.arange(len(self.item))
        return np.asarray(self.known(rows) > np.repeat(self.offsets[:-1], self.lengths()))

    def kept(self, keep: BoolArray) -> Sequences:
        """Return the rows where `keep` (n,) is True as new sequences."""
        place = np.concatenate([[0], np.cumsum(keep)])  # number of kept rows before each
        tie = None if self.tie is None else place[self.tie[keep]]
        return Sequences(self.item[keep], self.index[keep], place[self.offsets], tie)


def tie_order(n: int, seed: int | None, *cuts: int) -> FloatArray | None:
    """Return a random order (n,) of tied events for `Sequences.of`; None without a seed: the order of the file.

    The first events get the same order whatever n is, and an event before a cut stays before those after it: sequences
    of the training part and of all events agree.
    """
    if seed is None:
        return None
    return np.asarray(np.random.default_rng(seed).random(n) + sum(np.arange(n) >= cut for cut in cuts))


def _first_of_tie(user: IntArray, time: FloatArray) -> IntArray:
    n = len(user)
    new = np.ones(n, dtype=bool)
    new[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    return np.maximum.accumulate(np.where(new, np.arange(n), 0))


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of users' sequences: rows start:stop are read in order, rows first:stop are predicted.

    All (w,), rows of a `Sequences`. Row r is predicted from rows start:r, or from the strictly earlier ones among them
    (see `tensors`).
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


def tensors(sequences: Sequences, part: Windows, strict: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the backbone's input for a batch of windows.

    Args:
        strict: whether a tied event is predicted from strictly earlier events only. False = from all rows before it,
            which is for training and for rows that start a tie.

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
    if strict:  # a tie that began before a window of a long history is predicted from no history
        slots = np.maximum(sequences.known(rows[predicted]) - part.start[where], 0)
    return (
        torch.from_numpy(np.ascontiguousarray(tokens)), torch.from_numpy(where), torch.from_numpy(slots),
        torch.from_numpy(rows[predicted]),
    )
