"""Training and judging users' knowledge: moments at which it is generated, and the events that follow.

Generating costs a pass through the language model, scoring an event almost nothing; so each snapshot (a user at some
moment) serves the `SPAN` events after it, at every one of their positions, as it will when the system runs.
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

SPAN = 24  # events a snapshot's knowledge is used for; the demo's users are refreshed about as often


@dataclass(frozen=True, slots=True)
class SnapshotBatch:
    """Snapshots of B users and the m events after them.

    Args:
        user_hidden: (B, d) the reference's state at the snapshot.
        histories: (B, H) newest item rows at the snapshot, oldest first, −1 = none.
        fused_hidden: (B, S, d) of the fused scorer without knowledge.
        user, slot: (m,) where each event's hidden state is.
        rows: (m,) rows of the sequences.
        ref_logits: (m, n) of the reference.
    """

    user_hidden: Tensor
    histories: IntArray
    fused_hidden: Tensor
    user: Tensor
    slot: Tensor
    rows: IntArray
    ref_logits: Tensor


def draw(sequences: Sequences, n: int, rng: np.random.Generator, begin: IntArray | None = None) -> IntArray:
    """Return n different rows (or all there are) that have a history, each the first event after a snapshot.

    Args:
        begin: (users,) first row allowed; None = any.
    """
    low = sequences.offsets[:-1]
    first = np.repeat(np.maximum(low + 1, low if begin is None else begin), sequences.lengths())
    rows = np.flatnonzero(np.arange(len(sequences.item)) >= first)
    return rng.permutation(rows)[:n]


def regular(sequences: Sequences, begin: IntArray, span: int = SPAN) -> IntArray:
    """Return the rows at which every user from `begin` on is refreshed every `span` events, none without a history."""
    low, high = sequences.offsets[:-1], sequences.offsets[1:]
    spans = [np.arange(max(a + 1, b), c, span) for a, b, c in zip(low, begin, high, strict=True)]
    return np.concatenate(spans) if spans else np.zeros(0, np.int64)


def after(sequences: Sequences, rows: IntArray, max_len: int, span: int = SPAN) -> Windows:
    """Return the windows that predict up to `span` events of the same user from each of `rows` on."""
    user = np.searchsorted(sequences.offsets, rows, "right") - 1
    stop = np.minimum(rows + span, sequences.offsets[user + 1])
    return Windows(np.maximum(sequences.offsets[user], stop - 1 - max_len), rows, stop)


@torch.no_grad()
def batch_of(
    sequences: Sequences, part: Windows, reference: Backbone, fused: FusedScorer, history: int,
) -> SnapshotBatch:
    """Return everything about a batch of snapshots that does not depend on knowledge.

    Args:
        part: from `after`.
        history: H, items the language model reads.
    """
    tokens, where, slots, rows = tensors(sequences, part)
    ref_hidden = reference(tokens)
    return SnapshotBatch(
        user_hidden=ref_hidden[torch.arange(len(part)), torch.from_numpy(part.first - part.start)],
        histories=before(sequences, part.first, history),
        fused_hidden=fused(tokens), user=where, slot=slots, rows=rows.numpy(),
        ref_logits=reference.scores(ref_hidden[where, slots]),
    )


def before(sequences: Sequences, rows: IntArray, n: int) -> IntArray:
    """Return the user's newest n items before each of `rows` (B,), as (B, n) oldest first, −1 = none."""
    low = sequences.offsets[np.searchsorted(sequences.offsets, rows, "right") - 1]
    places = rows[:, None] - np.arange(n, 0, -1)
    return np.where(places >= low[:, None], sequences.item[np.maximum(places, 0)], -1)


def exchanged(sequences: Sequences, first: IntArray, user: IntArray, rows: IntArray) -> IntArray:
    """Return, for events (m,) after snapshots, rows as far behind the snapshot that precedes theirs in the batch.

    A history that ends there is another user's, if the snapshots are in a random order.

    Args:
        first: (B,) rows of the snapshots.
        user: (m,) each event's snapshot.
        rows: (m,) of the events.
    """
    other = np.roll(first, 1)[user]
    newest = sequences.offsets[np.searchsorted(sequences.offsets, other, "right")] - 1
    return np.minimum(other + rows - first[user], newest)
