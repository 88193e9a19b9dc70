"""Sources of knowledge at work: they make the knowledge of users as they come.

In training a source meets moments of users it has rows of. A live user has a name and a history, and may be new: what a
source knows of users by row is looked up by name, and texts about them are written again.
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
    """A trained source that makes the knowledge of users as they come.

    Args:
        make: knowledge (B, K, d) of moments, given the histories of item rows they are of as well.
        items: H, newest items of a history that moments hold.
        codes: chosen codewords (B, S) of users' states (B, d); S = 0 for sources without.
        users: rows of the users it was trained on, where it looks at them.
        knowledge: the model of soft instructions, where that is what it is.
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
        """Return the knowledge of any number of users, `batch` at a time, fewer if the GPU's memory is too small.

        Args:
            hidden: (B, d) the reference's states of them.
            histories: of item rows, oldest first.
            users: their names; () = not known.

        Raises:
            torch.OutOfMemoryError: not even one user fits.
        """
        row = np.array([self.users.get(user, -1) for user in users] or [-1] * len(histories), np.int64)
        newest = padded(histories, self.items)
        length = np.array([len(history) for history in histories], np.int64)

        def make(part: slice) -> Tensor:
            return self.make(Moments(row[part], hidden[part], newest[part], length[part]), histories[part])

        return Generation.of(in_passes(make, len(histories), batch), self.codes(hidden))


def padded(histories: Sequence[Sequence[int]], width: int) -> IntArray:
    """Return the newest `width` items of each history (B, width), oldest first, −1 = none."""
    out = np.full((len(histories), width), -1, np.int64)
    for row, items in zip(out, histories, strict=True):
        newest = items[-width:]
        row[:len(newest)] = newest
    return out
