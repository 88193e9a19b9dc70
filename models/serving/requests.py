"""What ranking is asked and what it answers: batches of users' histories, knowledge and events to judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.scorers.fusion import Evidence

# Evidence (m, M) and how many events old it is (m,), of: histories' tokens (m, T); how many of these had come (m,);
# their rows in the batch (m,); events of the history that came after those (m,).
Gather = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Evidence, Tensor]]
_NO_ITEMS, _NO_WEIGHTS = np.zeros(0, np.int64), np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class UserKnowledge:
    """What is known of one user, and how old it is.

    Args:
        vectors: (K, d).
        items, weights: (M,) evidence, as item rows; see `models.evidence.ease`.
        behind: events of the user since, at the end of the history it is used with.
    """

    vectors: np.ndarray | Tensor
    items: np.ndarray = field(default_factory=lambda: _NO_ITEMS)
    weights: np.ndarray = field(default_factory=lambda: _NO_WEIGHTS)
    behind: int = 0


@dataclass(frozen=True, slots=True)
class RankBatch:
    """Requests of B users, as item rows; −1 is an item the model does not know.

    Args:
        histories: B lists, oldest first.
        seen: B lists of further items not to recommend.
        knowledge: B users' knowledge, None where a user has none.
        judged: B lists of (position, item row): history[:position] came before the item.
        top: items of each user that will be shown, for models that do not score all.
        current_evidence: recompute the evidence of users with knowledge from `histories` instead of using the stored
            one.
    """

    histories: Sequence[Sequence[int]]
    seen: Sequence[Sequence[int]]
    knowledge: Sequence[UserKnowledge | None]
    judged: Sequence[Sequence[tuple[int, int]]] = field(default_factory=list)
    top: int = 10
    current_evidence: bool = False


@dataclass(frozen=True, slots=True)
class RankResult:
    """What to rank by, and what knowledge was worth.

    Args:
        ref_logp: (B, n) float32 log-probabilities of the next item by behaviour alone; −inf = seen, or, of a generative
            model, not among the beams.
        fused_logp: (B, n) the same with knowledge; equal to `ref_logp` where a user has none.
        margins: B lists, per judged event log p_fused − log p_ref over the whole catalogue (nats), None where the item
            is unknown, the position is no longer in the history read, or the user has no knowledge.
    """

    ref_logp: Tensor
    fused_logp: Tensor
    margins: list[list[float | None]]


def stored_evidence(batch: RankBatch) -> Gather:
    """Return what gives the evidence that came with users' knowledge."""
    width = max((len(known.items) for known in batch.knowledge if known), default=0)
    items = np.full((len(batch.knowledge), width), -1, np.int64)
    weights = np.zeros((len(batch.knowledge), width), np.float32)
    behind = np.zeros(len(batch.knowledge), np.int64)
    for row, known in enumerate(batch.knowledge):
        if known:
            items[row, :len(known.items)], weights[row, :len(known.weights)] = known.items, known.weights
            behind[row] = known.behind
    evidence, old = Evidence(torch.from_numpy(items), torch.from_numpy(weights)), torch.from_numpy(behind)
    return lambda _tokens, _slots, rows, after: (evidence[rows], (old[rows] - after).clamp(min=0))


def known_items(histories: Sequence[Sequence[int]], max_len: int) -> tuple[list[list[int]], list[dict[int, int]]]:
    """Return histories without unknown items, newest `max_len`, and where each position of the original now is."""
    out, positions = [], []
    for history in histories:
        known: list[int] = []
        before = []  # number of known items before each position
        for item in history:
            before.append(len(known))
            if item >= 0:
                known.append(item)
        before.append(len(known))
        cut = max(0, len(known) - max_len)
        positions.append({place: count - cut for place, count in enumerate(before) if count >= cut})
        out.append(known[cut:])
    return out, positions


def seen_items(histories: Sequence[Sequence[int]], seen: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return (row of the batch, item row) of what is not to be recommended, each pair once."""
    lists = [{item for item in (*a, *b) if item >= 0} for a, b in zip(histories, seen, strict=True)]
    rows = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    return torch.from_numpy(rows), torch.tensor([item for items in lists for item in items], dtype=torch.int64)
