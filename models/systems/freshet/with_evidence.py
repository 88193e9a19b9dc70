"""Freshet's composition: item knowledge for everyone, through the closed form (`models.evidence`), and user vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.reference import Reference
from models.knowledge.composition import Composed
from models.knowledge.sources import Source
from models.scorers.fusion import FusedScorer
from models.scorers.ranks import seen_pairs
from models.scorers.snapshots import before
from models.trust.region import over_catalogue


class WithEvidence(Composed):
    """A `Composed` whose text-aware scorer also adds evidence from the history, for users without vectors, too.

    The evidence is always current, however old the knowledge vectors are.

    Args:
        behaviour: the reference.
        affinity: the closed form with item knowledge.
    """

    uses_reference = True

    def __init__(
        self, backbone: FusedScorer, behaviour: Reference, source: Source | None, fusion: nn.Module | None,
        shuffled: bool, affinity: Ease,
    ) -> None:
        super().__init__(backbone, behaviour.backbone, source, fusion, shuffled)
        self.behaviour, self.affinity = behaviour, affinity

    def served(
        self, logits: Tensor, reference: Tensor, sequences: Sequences, rows: IntArray, has: Tensor,
        epsilon: float | None,
    ) -> Tensor:
        """Return the logits (m, n) that are served: evidence added, within the trust region of the reference."""
        if not isinstance(self.backbone, FusedScorer):
            return logits
        histories = before(sequences, rows, self.backbone.max_len)
        fused = self.backbone.weigh(logits, reference, self.affinity.evidence(histories), torch.zeros(len(rows)))
        if epsilon is None:
            return fused
        low = sequences.offsets[np.searchsorted(sequences.offsets, rows, "right") - 1]
        return over_catalogue(self.behaviour.weigh(reference, histories), fused, torch.full((len(rows),), epsilon),
                              seen_pairs(sequences, low, rows))
