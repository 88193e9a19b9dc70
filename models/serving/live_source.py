"""Knowledge sources in serving: they generate knowledge for live users.

In training, a source gets moments of users that have rows. A live user has a name and a history, and may be new. Data
that a source stores by row is looked up by name, and texts about users are rewritten from the live history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.knowledge.generation import Generation, in_passes
from models.knowledge.sources import Moments
from models.systems.lwgr.knowledge import KnowledgeModel


@dataclass(frozen=True)
class LiveSource:
    """A trained source that generates knowledge for live users.

    Args:
        make: returns knowledge (B, K, d) for moments and their histories of item rows.
        items: H, number of newest history items in a moment.
        codes: returns the codewords (B, S) for user states (B, d); S = 0 for sources without codewords.
        users: row by name for the users it was trained on, if the source needs it.
        knowledge: the soft instruction model, for sources of that kind.
    """

    make: Callable[[Moments, Sequence[Sequence[int]]], Tensor]
    items: int
    codes: Callable[[Tensor], Tensor] = lambda hidden: torch.zeros(len(hidden), 0, dtype=torch.int64)
    users: Mapping[str, int] = field(default_factory=dict)
    knowledge: KnowledgeModel | None = None

    @torch.no_grad()
    def generate(
        self, hidden: Tensor, histories: Sequence[Sequence[int]], users: Sequence[str] = (), batch: int = 16,
    ) -> Generation:
        """Return knowledge for any number of users, in passes of `batch` users, or fewer if GPU memory is too small.

        Args:
            hidden: (B, d) the reference's hidden states of the users.
            histories: the users' item rows, oldest first.
            users: names of the users; () = unknown.

        Raises:
            torch.OutOfMemoryError: one user does not fit.
        """
        row = np.array([self.users.get(user, -1) for user in users] or [-1] * len(histories), np.int64)
        newest = padded(histories, self.items)
        length = np.array([len(history) for history in histories], np.int64)

        def make(part: slice) -> Tensor:
            return self.make(Moments(row[part], hidden[part], newest[part], length[part]), histories[part])

        return Generation.of(in_passes(make, len(histories), batch), self.codes(hidden))


def padded(histories: Sequence[Sequence[int]], width: int) -> IntArray:
    """Return the newest `width` items of each history, (B, width), oldest first, −1 = none."""
    out = np.full((len(histories), width), -1, np.int64)
    for row, items in zip(out, histories, strict=True):
        newest = items[-width:]
        row[:len(newest)] = newest
    return out
