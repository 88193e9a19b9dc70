"""Ranks of target items: each event is predicted from earlier events, and seen items are excluded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import FloatArray, IntArray
from models.data.sequences import Sequences, Windows, batches, tensors, windows
from models.scorers.backbone import Backbone

SLOTS = 20_000  # padded positions per forward pass: 20,000 × 64 floats in each of a few buffers
ELEMENTS = 4_000_000  # scores in memory at a time


@torch.no_grad()
def hidden_before(
    backbone: Backbone, sequences: Sequences, begin: IntArray, stride: int = 1, rows: IntArray | None = None,
) -> tuple[IntArray, Tensor]:
    """Return the backbone's hidden state before each event from row `begin` on.

    Args:
        begin: (users,) first row of each user.
        stride: see `models.data.sequences.windows`; 1 = exactly as in serving.
        rows: restrict to these rows, ascending; None = all.

    Returns:
        Rows of `sequences`, ascending (m,), and hidden states (m, d).
    """
    training = backbone.training
    backbone.eval()
    part: Windows = windows(sequences, backbone.max_len, stride, begin)
    if rows is not None:
        part = part[np.flatnonzero(np.searchsorted(rows, part.first) < np.searchsorted(rows, part.stop))]
    found, hidden = [np.zeros(0, np.int64)], [torch.zeros(0, backbone.dim)]
    side = backbone.item_side()
    for batch in batches(part, SLOTS):
        tokens, where, slots, predicted = tensors(sequences, part[batch])
        found.append(predicted.numpy())
        hidden.append(backbone(tokens, side)[where, slots])
    backbone.train(training)
    joined = np.concatenate(found)
    order = np.argsort(joined)
    if rows is not None:
        order = order[np.isin(joined[order], rows)]
    return joined[order], torch.cat(hidden)[torch.from_numpy(order)]


@torch.no_grad()
def target_ranks(
    scores: Callable[[Tensor], Tensor], n_items: int, sequences: Sequences, rows: IntArray,
) -> tuple[IntArray, FloatArray]:
    """Return rank and log-probability of the item of each event.

    Args:
        scores: returns logits (c, n_items) of events rows[part] for `part` (c,) int64.
        rows: (m,) rows of `sequences`.

    Returns:
        Ranks (m,) among items the user has not had before; ties count against the target, and a repeated item gets
        n_items. Log-probabilities (m,) over the whole catalogue, without masking.
    """
    ranks, logp = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    low = sequences.offsets[np.searchsorted(sequences.offsets, rows, "right") - 1]
    for part in torch.arange(len(rows)).split(max(1, ELEMENTS // n_items)):
        at = part.numpy()
        target = torch.from_numpy(sequences.item[rows[at]])
        each = torch.arange(len(part))
        logits = scores(part)
        own = logits[each, target]
        logp[at] = (own - logits.logsumexp(-1)).numpy()
        user, item = seen_pairs(sequences, low[at], rows[at])
        logits[user, item] = -torch.inf
        better = (logits >= own[:, None]).sum(-1) - 1
        ranks[at] = torch.where(torch.isinf(logits[each, target]), n_items, better).numpy()
    return ranks, logp


def seen_pairs(sequences: Sequences, low: IntArray, high: IntArray) -> tuple[Tensor, Tensor]:
    """Return pairs (row of the chunk, item) for all items in sequences rows low:high."""
    counts = high - low
    user = np.repeat(np.arange(len(low)), counts)
    offset = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(user), torch.from_numpy(sequences.item[np.repeat(low, counts) + offset])
