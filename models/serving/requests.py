"""Ranking requests and results: batches of histories, knowledge and events to judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.scorers.fusion import Evidence

# Returns evidence (m, M) and its age in events (m,). Arguments: tokens of histories (m, T); how many of them to use
# (m,); their rows in the batch (m,); number of later events in the history (m,).
Gather = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Evidence, Tensor]]
_NO_ITEMS, _NO_WEIGHTS = np.zeros(0, np.int64), np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class UserKnowledge:
    """One user's knowledge and its age.

    Args:
        vectors: (K, d).
        items, weights: (M,) evidence: item rows and weights, see `models.evidence.ease`.
        behind: number of user events since the knowledge was generated, at the end of the history.
    """

    vectors: np.ndarray | Tensor
    items: np.ndarray = field(default_factory=lambda: _NO_ITEMS)
    weights: np.ndarray = field(default_factory=lambda: _NO_WEIGHTS)
    behind: int = 0


@dataclass(frozen=True, slots=True)
class RankBatch:
    """Requests of B users, as item rows; −1 is an item unknown to the model.

    Args:
        histories: B lists, oldest first.
        seen: B lists of further items to exclude.
        knowledge: the knowledge of B users; None = the user has none.
        judged: B lists of (position, item row): history[:position] came before the item.
        top: number of items to show per user, for models that do not score the whole catalogue.
        repeats: B, whether items of the history may be recommended again; () = of nobody.
        current_evidence: for users with knowledge, recompute the evidence from `histories` instead of using the stored
            evidence.
        withheld: (n,) bool, items that are in no user's list; None = there are none. In histories they speak.
    """

    histories: Sequence[Sequence[int]]
    seen: Sequence[Sequence[int]]
    knowledge: Sequence[UserKnowledge | None]
    judged: Sequence[Sequence[tuple[int, int]]] = field(default_factory=list)
    top: int = 10
    current_evidence: bool = False
    withheld: Tensor | None = None
    repeats: Sequence[bool] = ()

    def masked(self) -> tuple[Tensor, Tensor]:
        """Return pairs (row of the batch, item row) of items that its user may not have again, without duplicates."""
        histories = self.histories if not any(self.repeats) else [
            () if repeat else history for history, repeat in zip(self.histories, self.repeats, strict=True)]
        return seen_items(histories, self.seen)


@dataclass(frozen=True, slots=True)
class RankResult:
    """Scores for ranking, and margins of judged events.

    Args:
        ref_logp: (B, n) float32 log-probabilities of the next item by behaviour alone; −inf = seen, withheld or,
            for a generative model, outside the beams.
        fused_logp: (B, n) the same with knowledge; of users without vectors, with item knowledge if the model has
            it, else equal to `ref_logp`.
        margins: B lists with log p_fused − log p_ref (nats, whole catalogue) for each judged event. None = the item is
            unknown, the position precedes the history that is read, or the user has no knowledge.
    """

    ref_logp: Tensor
    fused_logp: Tensor
    margins: list[list[float | None]]


def stored_evidence(batch: RankBatch) -> Gather:
    """Return a `Gather` that uses the evidence stored with the users' knowledge."""
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
    """Return the newest `max_len` known items of each history, and the new index of each original position."""
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
    """Return pairs (row of the batch, item row) of the items to exclude, without duplicates."""
    lists = [{item for item in (*a, *b) if item >= 0} for a, b in zip(histories, seen, strict=True)]
    rows = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    return torch.from_numpy(rows), torch.tensor([item for items in lists for item in items], dtype=torch.int64)
