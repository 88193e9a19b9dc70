"""A composition whose users' knowledge includes the evidence of their history (`models.evidence.ease`): Freshet's
own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.evidence.ease import Affinity
from models.knowledge.composition import Composed
from models.knowledge.sources import Source
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.scorers.snapshots import before


class WithEvidence(Composed):
    """A `Composed` on a scorer with texts, which weighs the evidence of the history, current however old vectors are.

    Args:
        affinity: what items say about each other.
    """

    hears_reference = True

    def __init__(
        self, backbone: FusedScorer, reference: Backbone, source: Source | None, fusion: nn.Module | None,
        shuffled: bool, affinity: Affinity,
    ) -> None:
        super().__init__(backbone, reference, source, fusion, shuffled)
        self.affinity = affinity

    def finish(self, logits: Tensor, reference: Tensor, sequences: Sequences, used: IntArray, age: IntArray) -> Tensor:
        """Return logits (m, n) with the evidence there is `age` (m,) events after moments `used` (m,)."""
        if not isinstance(self.backbone, FusedScorer):
            return logits
        newest = sequences.offsets[np.searchsorted(sequences.offsets, used, "right")] - 1  # another user's if shuffled
        gathered = self.affinity.evidence(before(sequences, np.minimum(used + age, newest), self.backbone.max_len))
        return self.backbone.weigh(logits, reference, gathered, torch.zeros(len(used)))
