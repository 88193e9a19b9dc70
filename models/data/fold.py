"""The training events, with the held-out rows that choose epochs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import Events, IntArray
from models.data.sequences import Sequences

VALIDATION = 0.1  # last share of the training events


@dataclass(frozen=True, slots=True)
class Fold:
    """The training part of the timeline by user, with its last share held out.

    Args:
        sequences: all events of the training part.
        begin: (users,) first held-out row of each user; rows before it are trained on.
        n_items: size of the catalogue.
    """

    sequences: Sequences
    begin: IntArray
    n_items: int

    @classmethod
    def of(cls, events: Events, n_users: int, n_items: int, share: float = VALIDATION) -> Fold:
        """Hold out the last `share` of time-ordered events."""
        cut = len(events) - max(1, int(len(events) * share))
        sequences = Sequences.of(events, n_users)
        return cls(sequences, sequences.offsets[:-1] + np.bincount(events.user[:cut], minlength=n_users), n_items)

    def training(self) -> Sequences:
        """Return the rows before `begin` as new sequences."""
        lengths = self.begin - self.sequences.offsets[:-1]
        keep = np.arange(len(self.sequences.item)) < np.repeat(self.begin, self.sequences.lengths())
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Sequences(self.sequences.item[keep], self.sequences.index[keep], offsets)

    def fresh(self) -> Tensor:
        """Return (n_items,) bool: items without training rows."""
        return fresh_items(self.training(), self.n_items)


def fresh_items(sequences: Sequences, n_items: int) -> Tensor:
    """Return (n_items,) bool: items without events."""
    return torch.from_numpy(np.bincount(sequences.item, minlength=n_items) == 0)
