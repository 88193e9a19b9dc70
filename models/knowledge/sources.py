"""Sources of user knowledge: they turn histories into vectors of the backbone's width, with a frozen language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.scorers.backbone import Backbone
from models.scorers.snapshots import before

THROUGH_LLM = 192  # moments per epoch if gradients pass through the language model
FROZEN = 1536  # moments per epoch if they do not


@dataclass(frozen=True, slots=True)
class Moments:
    """B moments at which to generate a user's knowledge.

    Args:
        user: (B,) user rows.
        hidden: (B, d) the reference's hidden state at the moment.
        histories: (B, H) newest item rows before the moment, oldest first, −1 = none.
        length: (B,) number of the user's earlier events.
    """

    user: IntArray
    hidden: Tensor
    histories: IntArray
    length: IntArray


class Source(nn.Module, ABC):
    """A trainable generator of user knowledge.

    Attributes:
        items: H, number of items read from a history.
        snapshots: training moments per epoch; fewer for sources with expensive passes.
    """

    items: int
    snapshots: int

    @abstractmethod
    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, K, d)."""

    def attach(self, backbone: Backbone) -> None:
        """Share parts with the scorer that is trained together with the source, if the system does that."""

    def auxiliary(self) -> Tensor:
        """Return the source's auxiliary loss on the last batch."""
        return torch.zeros(())

    def masked(self) -> list[nn.Parameter]:
        """Return weights that are trained only with the masked loss (`models.knowledge.objectives.Judged`)."""
        return []

    def log(self) -> dict[str, float]:
        """Return figures of the source's state, such as code usage."""
        return {}


def moments_at(sequences: Sequences, rows: IntArray, hidden: Tensor, items: int) -> Moments:
    """Return the moments before rows (B,), with the newest `items` of each user's history."""
    user = sequences.user(rows)
    return Moments(user, hidden, before(sequences, rows, items), sequences.known(rows) - sequences.offsets[user])
