"""A composition whose users' knowledge includes the evidence of their history (`models.affinity`): Freshet's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.affinity import Affinity
from models.backbone import Backbone
from models.composition import Composed, Source
from models.dataset import IntArray
from models.fusion import FusedScorer
from models.sequences import Sequences
from models.snapshots import before


class WithEvidence(Composed):
    """A `Composed` on a scorer with texts, which weighs evidence gathered at the moment of its user's knowledge.

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
        """Return logits (m, n) with the evidence of moments `used` (m,), `age` (m,) events later."""
        if not isinstance(self.backbone, FusedScorer):
            return logits
        gathered = self.affinity.evidence(before(sequences, used, self.backbone.max_len))
        return self.backbone.weigh(logits, reference, gathered, torch.from_numpy(age))
