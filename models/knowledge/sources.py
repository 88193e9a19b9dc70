"""Sources of users' knowledge: what a frozen language model makes of a history, as vectors of the backbone's width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.scorers.backbone import Backbone
from models.scorers.snapshots import before

THROUGH_LLM = 192  # moments per epoch where gradients pass through the language model
FROZEN = 1536  # where they do not


@dataclass(frozen=True, slots=True)
class Moments:
    """B moments of users for which knowledge is wanted.

    Args:
        user: (B,) user rows.
        hidden: (B, d) the reference's state of the user then.
        histories: (B, H) newest item rows before, oldest first, −1 = none.
        length: (B,) events of the user before.
    """

    user: IntArray
    hidden: Tensor
    histories: IntArray
    length: IntArray


class Source(nn.Module, ABC):
    """Makes users' knowledge; trainable.

    Attributes:
        items: H, items of a history it reads.
        snapshots: moments it is trained on per epoch: what a pass costs decides.
    """

    items: int
    snapshots: int

    @abstractmethod
    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, K, d)."""

    def attach(self, backbone: Backbone) -> None:
        """Share parts with the scorer it is trained with, where the system says so."""

    def auxiliary(self) -> Tensor:
        """Return a loss of its own on the last batch."""
        return torch.zeros(())

    def masked(self) -> list[nn.Parameter]:
        """Return weights that learn only from what an objective masks (`models.knowledge.objectives.Judged`)."""
        return []

    def log(self) -> dict[str, float]:
        """Return figures of its inner state (use of codes, say)."""
        return {}


def moments_at(sequences: Sequences, rows: IntArray, hidden: Tensor, items: int) -> Moments:
    """Return the moments before rows (B,), with the newest `items` of each user's history."""
    user = np.searchsorted(sequences.offsets, rows, "right") - 1
    return Moments(user, hidden, before(sequences, rows, items), rows - sequences.offsets[user])
