"""The training events, with the held-out rows that choose epochs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import Events, IntArray
from models.data.sequences import Sequences, tie_order

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
    def of(
        cls, events: Events, n_users: int, n_items: int, share: float = VALIDATION, seed: int | None = None,
        strict: bool = True,
    ) -> Fold:
        """Hold out the last `share` of time-ordered events.

        Args:
            seed: of the order of tied events; None = the order of the file.
            strict: see `models.data.sequences.Sequences.of`.
        """
        cut = held_out(len(events), share)
        sequences = Sequences.of(events, n_users, tie_order(len(events), seed, cut), strict)
        return cls(sequences, sequences.offsets[:-1] + np.bincount(events.user[:cut], minlength=n_users), n_items)

    def training(self) -> Sequences:
        """Return the rows before `begin` as new sequences."""
        return self.sequences.kept(
            np.arange(len(self.sequences.item)) < np.repeat(self.begin, self.sequences.lengths()))

    def fresh(self) -> Tensor:
        """Return (n_items,) bool: items without training rows."""
        return fresh_items(self.training(), self.n_items)


def held_out(n: int, share: float = VALIDATION) -> int:
    """Return the first of n time-ordered events that `Fold.of` holds out."""
    return n - max(1, int(n * share))


def fresh_items(sequences: Sequences, n_items: int) -> Tensor:
    """Return (n_items,) bool: items without events."""
    return torch.from_numpy(np.bincount(sequences.item, minlength=n_items) == 0)
