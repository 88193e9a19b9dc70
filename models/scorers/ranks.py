"""Ranks of target items: each event is predicted from strictly earlier events, and items seen by then are excluded."""

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
    """Return the backbone's hidden state before each event from row `begin` on; tied events share one.

    Args:
        begin: (users,) first row of each user.
        stride: see `models.data.sequences.windows`; 1 = exactly as in serving.
        rows: restrict to these rows, ascending; None = all.

    Returns:
        Rows of `sequences`, ascending (m,), and hidden states (m, d).
    """
    training = backbone.training
    backbone.eval()
    side = backbone.item_side()
    found, hidden = states_before(
        lambda tokens: backbone(tokens, side), backbone.dim, backbone.max_len, sequences, begin, stride, rows)
    backbone.train(training)
    return found, hidden


def states_before(
    read: Callable[[Tensor], Tensor], dim: int, max_len: int, sequences: Sequences, begin: IntArray, stride: int = 1,
    rows: IntArray | None = None, room: int = SLOTS,
) -> tuple[IntArray, Tensor]:
    """Return what `hidden_before` returns, for any reader of histories.

    Args:
        read: tokens (B, T) → states (B, T + 1, dim), slot t has read the first t tokens.
        room: padded positions per call of `read`.
    """
    if rows is None:
        first = np.repeat(begin, sequences.lengths())
        rows = np.flatnonzero(np.arange(len(sequences.item)) >= first)
    moments, place = np.unique(sequences.known(rows), return_inverse=True)
    # A tie may begin before the first predicted row.
    inside = begin < sequences.offsets[1:]
    begin = begin.copy()
    begin[inside] = sequences.known(begin[inside])
    part: Windows = windows(sequences, max_len, stride, begin)
    part = part[np.flatnonzero(np.searchsorted(moments, part.first) < np.searchsorted(moments, part.stop))]
    found, hidden = [np.zeros(0, np.int64)], [torch.zeros(0, dim)]
    for batch in batches(part, room):
        tokens, where, slots, predicted = tensors(sequences, part[batch], strict=False)
        wanted = np.isin(predicted.numpy(), moments)
        asked = torch.from_numpy(wanted)
        found.append(predicted.numpy()[wanted])
        hidden.append(read(tokens)[where[asked], slots[asked]])
    order = np.argsort(np.concatenate(found))
    return rows, torch.cat(hidden)[torch.from_numpy(order[place])]


@torch.no_grad()
def target_ranks(
    scores: Callable[[Tensor], Tensor], n_items: int, sequences: Sequences, rows: IntArray,
) -> tuple[IntArray, FloatArray]:
    """Return rank and log-probability of the item of each event.

    Args:
        scores: returns logits (c, n_items) of events rows[part] for `part` (c,) int64.
        rows: (m,) rows of `sequences`.

    Returns:
        Ranks (m,) among items the user has not had before; equal scores count against the target, and a repeated item
        gets n_items. Log-probabilities (m,) over the whole catalogue, without masking.
    """
    ranks, logp = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    low = sequences.offsets[sequences.user(rows)]
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
    """Return pairs (row of the chunk, item) for all items in sequences rows low:high, without those tied with `high`.

    Args:
        low, high: (c,) a user's first row and the predicted row.
    """
    counts = sequences.known(high) - low
    user = np.repeat(np.arange(len(low)), counts)
    offset = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(user), torch.from_numpy(sequences.item[np.repeat(low, counts) + offset])
