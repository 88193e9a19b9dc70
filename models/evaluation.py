"""Stream-time quality: each event is predicted from what was known before it, over the whole catalogue, seen items out.

Recall@k is 1 where the item the user took is among the first k, NDCG@k is 1/log₂(rank + 2) there (one relevant item,
so the ideal is 1). An item taken a second time counts as a miss of every scorer: seen items are not recommended.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.backbone import Backbone
from models.dataset import FloatArray, IntArray
from models.sequences import Sequences, Windows, batches, tensors, windows

SLOTS = 20_000  # padded positions per forward pass: 20,000 × 64 floats in each of a few buffers
ELEMENTS = 4_000_000  # scores held at a time


def recall(ranks: IntArray, k: int = 10) -> FloatArray:
    """Return (m,) 1.0 where the rank (0 = first) is below k."""
    return (ranks < k).astype(np.float64)


def ndcg(ranks: IntArray, k: int = 10) -> FloatArray:
    """Return (m,) 1/log₂(rank + 2) where the rank is below k, else 0."""
    return np.where(ranks < k, 1 / np.log2(np.minimum(ranks, k) + 2), 0.0)


def metrics(ranks: IntArray, k: int = 10) -> dict[str, float]:
    """Return {"recall_at_k", "ndcg_at_k", "n"} of ranks (m,)."""
    n = len(ranks)
    return {
        f"recall_at_{k}": float(recall(ranks, k).mean()) if n else 0.0,
        f"ndcg_at_{k}": float(ndcg(ranks, k).mean()) if n else 0.0, "n": float(n),
    }


@torch.no_grad()
def hidden_before(
    backbone: Backbone, sequences: Sequences, begin: IntArray, stride: int = 1, rows: IntArray | None = None,
) -> tuple[IntArray, Tensor]:
    """Return what the backbone knows before each event of a user from row `begin` on.

    Args:
        begin: (users,) first row of each user.
        stride: see `models.sequences.windows`; 1 = exactly as in serving.
        rows: only these of them, ascending; None = all.

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
        scores: gives logits (c, n_items) of events rows[part] for `part` (c,) int64.
        rows: (m,) rows of `sequences`.

    Returns:
        Ranks (m,) among items the user has not had before, ties lost, n_items where he had it; log-probabilities (m,)
        over the whole catalogue, nothing masked.
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
    """Return (row of the chunk, item) of everything in sequences rows low:high."""
    counts = high - low
    user = np.repeat(np.arange(len(low)), counts)
    offset = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(user), torch.from_numpy(sequences.item[np.repeat(low, counts) + offset])


def paired_interval(
    diffs_by_user: list[npt.NDArray[np.float64]] | dict[str, npt.NDArray[np.float64]], seed: int = 0,
    draws: int = 2000, level: float = 0.95,
) -> tuple[float, float]:
    """Return the bootstrap interval of a mean difference of two scorers, users drawn with replacement.

    A user's events depend on each other, so users are drawn, not events; the mean is over events (large users weigh
    more), as in the metrics themselves.

    Args:
        diffs_by_user: per user, fused − reference of each of his events.

    Returns:
        Percentile bounds; (0, 0) where there is no event.
    """
    values = list(diffs_by_user.values()) if isinstance(diffs_by_user, dict) else diffs_by_user
    sums = np.array([float(np.sum(user)) for user in values if len(user)])
    counts = np.array([len(user) for user in values if len(user)], dtype=np.float64)
    if not len(sums):
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    means = (weights @ sums) / (weights @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
