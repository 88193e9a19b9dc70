"""Scorers that nothing is trained for: popularity, and a walk from the two newest items. They are controls.

A trained system has to beat them. The walk is after arXiv 2605.07125: on 10 of 14 data sets an untrained graph on the
last one or two items is level with trained models or above them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.data.sequences import Sequences

# Logits (m, n_items) from histories (m, H) of item rows, oldest first, −1 = none.
Scores = Callable[[IntArray], Tensor]
DAMPED = (0.0, 0.5, 1.0)  # β: 0 favours popular items, 1 rare ones
OLDER = (0.0, 0.5, 1.0)  # weight of the second newest item; 0 = the newest alone
LAST = 1e-6  # of popularity, which decides between items that are equal otherwise


@dataclass(frozen=True, slots=True)
class Popularity:
    """The logarithm of the number of training events of each item, for everyone.

    Args:
        logits: (n_items,).
    """

    logits: Tensor

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int) -> Popularity:
        """Count events; an unseen item counts as half of one."""
        counts = np.bincount(sequences.item, minlength=n_items)
        return cls(torch.from_numpy(np.log(np.maximum(counts, 0.5))).float())

    def __call__(self, histories: IntArray) -> Tensor:
        """Return the logits (m, n_items)."""
        return self.logits.repeat(len(histories), 1)


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk from the newest items to users who had them, to the other items of these users.

    Args:
        ends: (s,) items where walks end, grouped by the item where they start.
        chances: (s,) how likely each end is.
        offsets: (n_items + 1,) item i has rows offsets[i]:offsets[i + 1] of both.
        popularity: (n_items,) training events of each item.
        older: weight of the second newest item.
        damped: β, scores are divided by popularity^β.
    """

    ends: Tensor
    chances: Tensor
    offsets: Tensor
    popularity: Tensor
    older: float = 0.5
    damped: float = 0.5

    @classmethod
    def candidates(cls, sequences: Sequences, n_items: int) -> list[Walk]:
        """Return walks on these sequences, one for each pair of settings."""
        steps = _steps(sequences, n_items)
        start, ends = steps.indices()
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(start, minlength=n_items).cumsum(0)])
        popularity = torch.from_numpy(np.bincount(sequences.item, minlength=n_items)).float()
        return [cls(ends, steps.values(), offsets, popularity, older, damped) for damped in DAMPED for older in OLDER]

    def __call__(self, histories: IntArray) -> Tensor:
        """Return the scores (m, n_items)."""
        total = LAST * (self.popularity / self.popularity.max().clamp(min=1)).repeat(len(histories), 1)
        weight = self.popularity.clamp(min=1.0) ** -self.damped
        for place, share in ((-1, 1.0), (-2, self.older)):
            if share and histories.shape[1] >= -place:
                total += share * weight * self.reached(torch.from_numpy(histories[:, place]))
        return total

    def reached(self, item: Tensor) -> Tensor:
        """Return how likely a walk from each item (m,) ends where, (m, n_items); 0 from −1."""
        low = self.offsets[item.clamp(min=0)]
        many = torch.where(item >= 0, self.offsets[item.clamp(min=0) + 1] - low, 0)
        row = torch.arange(len(item)).repeat_interleave(many)
        at = torch.arange(len(row)) - (many.cumsum(0) - many - low).repeat_interleave(many)
        out = torch.zeros(len(item), len(self.popularity))
        return out.index_put_((row, self.ends[at]), self.chances[at])


def _steps(sequences: Sequences, n_items: int) -> Tensor:
    """Return P (n_items, n_items), sparse: from an item to one of its users to one of the user's other items."""
    user = np.repeat(np.arange(len(sequences.offsets) - 1), sequences.lengths())
    pair = np.unique(user * n_items + sequences.item)
    place = torch.from_numpy(np.stack([pair // n_items, pair % n_items]))
    users = len(sequences.offsets) - 1
    had = torch.ones(place.shape[1])
    items_of = torch.bincount(place[0], minlength=users).float()
    users_of = torch.bincount(place[1], minlength=n_items).float()
    out = torch.sparse_coo_tensor(
        place, had / (items_of - 1).clamp(min=1)[place[0]], (users, n_items), check_invariants=False)
    back = torch.sparse_coo_tensor(
        place.flip(0), had / users_of.clamp(min=1)[place[1]], (n_items, users), check_invariants=False)
    with warnings.catch_warnings():  # of torch about a sparse layout that it uses inside
        warnings.simplefilter("ignore", UserWarning)
        joined = torch.sparse.mm(back, out).coalesce()
    at, values = joined.indices(), joined.values()
    away = at[0] != at[1]
    return torch.sparse_coo_tensor(at[:, away], values[away], joined.shape, check_invariants=False).coalesce()


def added(scorers: Sequence[tuple[float, Scores]]) -> Scores:
    """Return the weighted sum of scorers."""
    return lambda histories: torch.stack([weight * scores(histories) for weight, scores in scorers]).sum(0)
