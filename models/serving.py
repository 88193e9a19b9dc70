"""A trained composition in the form the ranking worker serves: `models.system.RankingModel`.

Once trained, what a scorer knows of items (ids, texts, neighbours, what was written about them) is one vector and one
bias per item, so every system's scorer is baked into the same plain form and needs none of its parts to rank. What is
left of the system at ranking is its fusion; what makes users' vectors belongs to the knowledge worker.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from models.affinity import Affinity
from models.backbone import Backbone
from models.composition import Composed
from models.evidence import WithEvidence
from models.fusion import FusedScorer
from models.system import RankingModel


@torch.no_grad()
def bake(backbone: Backbone, fusion: nn.Module | None = None) -> FusedScorer:
    """Return a scorer without texts that scores as `backbone` does, with `fusion` in the place of its attention."""
    vectors, bias = backbone.item_side()
    block: Any = backbone.blocks[0]
    scorer = FusedScorer(
        torch.zeros(backbone.n_items, 1), None, backbone.n_items, backbone.dim, len(backbone.blocks), block.heads,
        backbone.max_len, backbone.dropout)
    kept = {name: value for name, value in backbone.state_dict().items()
            if name.split(".")[0] in {"start", "positions", "blocks", "norm"}}
    scorer.load_state_dict(scorer.state_dict() | kept)
    scorer.items.copy_(vectors)
    scorer.bias.copy_(bias)
    if isinstance(backbone, FusedScorer):
        for name in ("evidence_gain", "evidence_half_life", "temperature"):
            getattr(scorer, name).copy_(getattr(backbone, name))
    if fusion is not None:
        scorer.attention = copy.deepcopy(fusion)  # type: ignore[assignment]
    return scorer.eval().requires_grad_(False)


def ranking_model(model: Composed, system: str, fusion: str) -> RankingModel:
    """Return what the ranking worker serves of a trained composition.

    Args:
        system, fusion: names of the row and of its fusion, for the artifact's configuration.
    """
    scorer = bake(model.backbone, model.fusion)
    block: Any = scorer.blocks[0]
    config = {
        "system": system, "fusion": fusion,
        "backbone": {
            "n_items": scorer.n_items, "dim": scorer.dim, "layers": len(scorer.blocks), "heads": block.heads,
            "max_len": scorer.max_len, "dropout": scorer.dropout}}
    affinity: Affinity | None = model.affinity if isinstance(model, WithEvidence) else None
    return RankingModel(model.reference, scorer, config, affinity)
