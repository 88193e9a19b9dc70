"""The reference: the strongest reading of behaviour alone, which needs no language model and is always current.

A transformer reads the history as a sequence, the closed form as a set; they err in different places. Scores are
τ (s + g z), with the transformer's s and the closed form's evidence z. Amazon Beauty's later events on known items,
NDCG@10: .0200 and .0209 alone, .0236 together (`make bench-quality`, one seed). Users are served this when there is
nothing else, and all knowledge is measured against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.evidence.ease import Ease
from models.scorers.backbone import Backbone
from models.scorers.fusion import Evidence


@dataclass(frozen=True, slots=True)
class Reference:
    """Transformer and closed form of behaviour.

    Args:
        backbone: the transformer.
        affinity: the closed form, fitted without item knowledge, with its half-life.
        gain: g, weight of the closed form.
        temperature: τ, factor of the scores.
    """

    backbone: Backbone
    affinity: Ease
    gain: float = 0.0
    temperature: float = 1.0

    @classmethod
    def plain(cls, backbone: Backbone) -> Reference:
        """Return the transformer alone."""
        return cls(backbone, Ease.none(backbone.n_items))

    def weigh(self, logits: Tensor, histories: Tensor | IntArray) -> Tensor:
        """Return the reference's logits (m, n), a new tensor.

        Args:
            logits: (m, n) of the transformer.
            histories: (m, H) item rows, oldest first, −1 = none.
        """
        return weighed(logits, self.affinity.evidence(histories), self.gain).mul_(self.temperature)


def weighed(logits: Tensor, evidence: Evidence, gain: float) -> Tensor:
    """Return s + g z (m, n), a new tensor, for logits s (m, n) and evidence z of the same m histories."""
    added = torch.where(evidence.items >= 0, gain * evidence.weights, 0.0)
    return logits.scatter_add(1, evidence.items.clamp(min=0), added.to(logits.dtype))
