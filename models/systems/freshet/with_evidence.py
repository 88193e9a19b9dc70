"""Freshet's composition: user knowledge includes the evidence from the history (`models.evidence.ease`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.knowledge.composition import Composed
from models.knowledge.sources import Source
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.scorers.snapshots import before


class WithEvidence(Composed):
    """A `Composed` whose text-aware scorer also adds evidence from the history.

    The evidence is always current, however old the knowledge vectors are.

    Args:
        affinity: fitted item–item weights.
    """

    uses_reference = True

    def __init__(
        self, backbone: FusedScorer, reference: Backbone, source: Source | None, fusion: nn.Module | None,
        shuffled: bool, affinity: Ease,
    ) -> None:
        super().__init__(backbone, reference, source, fusion, shuffled)
        self.affinity = affinity

    def add_evidence(
        self, logits: Tensor, reference: Tensor, sequences: Sequences, used: IntArray, age: IntArray,
    ) -> Tensor:
        """Return logits (m, n) plus the current evidence, `age` (m,) events after the moments `used` (m,)."""
        if not isinstance(self.backbone, FusedScorer):
            return logits
        newest = sequences.offsets[np.searchsorted(sequences.offsets, used, "right")] - 1  # another user's if shuffled
        gathered = self.affinity.evidence(before(sequences, np.minimum(used + age, newest), self.backbone.max_len))
        return self.backbone.weigh(logits, reference, gathered, torch.zeros(len(used)))
