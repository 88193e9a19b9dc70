"""Snapshots for training and judging user knowledge: a moment at which it is generated, and the events after it.

Generating knowledge costs a pass through the language model, while scoring an event costs almost nothing. Each snapshot
(a user at one moment) therefore serves the `SPAN` events after it, as in the running system.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.data.sequences import Sequences, Windows, tensors
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer

SPAN = 24  # events that use a snapshot's knowledge; the demo refreshes users about as often


@dataclass(frozen=True, slots=True)
class SnapshotBatch:
    """Snapshots of B users and the m events after them.

    Args:
        user_hidden: (B, d) the reference's hidden state at the snapshot.
        histories: (B, H) newest item rows at the snapshot, oldest first, −1 = none.
        fused_hidden: (B, S, d) hidden states of the fused scorer without knowledge.
        user, slot: (m,) index of each event's hidden state in `fused_hidden`.
        rows: (m,) rows of the sequences.
        ref_logits: (m, n) logits of the reference.
    """

    user_hidden: Tensor
    histories: IntArray
    fused_hidden: Tensor
    user: Tensor
    slot: Tensor
    rows: IntArray
    ref_logits: Tensor


def draw(sequences: Sequences, n: int, rng: np.random.Generator, begin: IntArray | None = None) -> IntArray:
    """Sample n distinct rows with a history (or all such rows), each the first event after a snapshot.

    Args:
        begin: (users,) first row allowed; None = any.
    """
    first = np.repeat(sequences.offsets[:-1] if begin is None else begin, sequences.lengths())
    rows = np.flatnonzero((np.arange(len(sequences.item)) >= first) & sequences.with_history())
    return rng.permutation(rows)[:n]


def regular(sequences: Sequences, begin: IntArray, span: int = SPAN) -> IntArray:
    """Return rows with a history at which users are refreshed: from `begin` on, every `span` events."""
    low, high = sequences.offsets[:-1], sequences.offsets[1:]
    without = np.bincount(sequences.user(np.flatnonzero(~sequences.with_history())), minlength=len(low))
    spans = [np.arange(max(a, b), c, span) for a, b, c in zip(low + without, begin, high, strict=True)]
    return np.concatenate(spans) if spans else np.zeros(0, np.int64)


def after(sequences: Sequences, rows: IntArray, max_len: int, span: int = SPAN) -> Windows:
    """Return windows that predict up to `span` events of the same user, starting at each of `rows`."""
    user = np.searchsorted(sequences.offsets, rows, "right") - 1
    stop = np.minimum(rows + span, sequences.offsets[user + 1])
    return Windows(np.maximum(sequences.offsets[user], stop - 1 - max_len), rows, stop)


def slots_at(sequences: Sequences, part: Windows) -> Tensor:
    """Return the slot (B,) of each window's hidden state at the snapshot, before all events tied with its first one."""
    return torch.from_numpy(np.maximum(sequences.known(part.first) - part.start, 0))


@torch.no_grad()
def batch_of(
    sequences: Sequences, part: Windows, reference: Backbone, fused: FusedScorer, history: int,
) -> SnapshotBatch:
    """Compute everything in a batch of snapshots that does not depend on knowledge.

    Args:
        part: windows from `after`.
        history: H, number of items the language model reads.
    """
    tokens, where, slots, rows = tensors(sequences, part)
    ref_hidden = reference(tokens)
    return SnapshotBatch(
        user_hidden=ref_hidden[torch.arange(len(part)), slots_at(sequences, part)],
        histories=before(sequences, part.first, history),
        fused_hidden=fused(tokens), user=where, slot=slots, rows=rows.numpy(),
        ref_logits=reference.scores(ref_hidden[where, slots]),
    )


def before(sequences: Sequences, rows: IntArray, n: int) -> IntArray:
    """Return the user's newest n items strictly before each of `rows` (B,), (B, n), oldest first, −1 = none."""
    low = sequences.offsets[sequences.user(rows)]
    places = sequences.known(rows)[:, None] - np.arange(n, 0, -1)
    return np.where(places >= low[:, None], sequences.item[np.maximum(places, 0)], -1)


def shuffled_rows(sequences: Sequences, first: IntArray, user: IntArray, rows: IntArray) -> IntArray:
    """Return rows (m,) that replace events' own rows, for the control with other users' histories.

    Each event gets the row at the same distance from the previous snapshot of the batch. If snapshots are in random
    order, the history before that row belongs to another user.

    Args:
        first: (B,) rows of the snapshots.
        user: (m,) index of each event's snapshot.
        rows: (m,) rows of the events.
    """
    other = np.roll(first, 1)[user]
    newest = sequences.offsets[np.searchsorted(sequences.offsets, other, "right")] - 1
    return np.minimum(other + rows - first[user], newest)
