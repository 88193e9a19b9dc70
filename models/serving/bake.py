"""Converts trained systems into the form that the ranking worker serves (`models.serving.ranking_model.RankingModel`).

After training, everything a scorer has learned about an item (id, text, neighbours, written texts) reduces to one
vector and one bias. Every system's scorer is therefore baked into the same plain form and ranks without its other
parts. Only the fusion stays specific to the system; the source of user vectors belongs to the knowledge worker.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
import torch
from torch import nn

from models.evidence.ease import Ease
from models.evidence.item_knowledge import ItemKnowledge
from models.evidence.later import Described
from models.evidence.reference import Reference
from models.knowledge.composition import Composed
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.serving.generative import GenerativeRanking
from models.serving.ranking_model import CONFIG, EVERYONE, RankingModel
from models.serving.requests import RankBatch, RankResult
from models.systems.freshet.with_evidence import WithEvidence
from schemas.artifacts import Artifact


class Ranking(Protocol):
    """The interface that the ranking worker needs from a model."""

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""

    @property
    def max_len(self) -> int:
        """Maximum number of items read from a history, the newest ones."""

    @property
    def dim(self) -> int:
        """Width of the knowledge vectors."""

    @property
    def encodes(self) -> bool:
        """Whether an item that comes after the fit needs the encoding of its text."""

    everyone: bool
    """Whether users without vectors have fused scores, too."""

    def rank(self, batch: RankBatch) -> RankResult:
        """Score a batch of requests."""

    def grow(self, size: int, known: Callable[[], ItemKnowledge]) -> None:
        """Make the catalogue `size` items, if the model can recommend items that come after the fit."""

    def put(self, rows: Sequence[int], new: Described, similar: Sequence[Mapping[int, float]]) -> None:
        """Take what is known of such items."""


def load_ranking(artifact: Artifact) -> Ranking:
    """Return the ranking model of an artifact of any system.

    Raises:
        ArtifactError: the files are inconsistent.
    """
    config = orjson.loads(artifact.path(CONFIG).read_bytes())
    return GenerativeRanking.load(artifact) if "generative" in config else RankingModel.load(artifact)


@torch.no_grad()
def bake(backbone: Backbone, fusion: nn.Module | None = None) -> FusedScorer:
    """Return a scorer without texts that gives the same scores as `backbone`, with `fusion` as its attention."""
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
    for name, value in backbone.named_buffers(recurse=False):  # scale of scores, weights of evidence
        if value.ndim == 0 and name != "fresh_shift":  # the vectors already include texts and new items
            getattr(scorer, name).copy_(value)
    if fusion is not None:
        scorer.attention = copy.deepcopy(fusion)  # type: ignore[assignment]
    return scorer.eval().requires_grad_(False)


def ranking_model(
    model: Composed, system: str, fusion: str, reference: Reference | None = None,
) -> RankingModel:
    """Return the ranking model of a trained composition.

    Args:
        system, fusion: names of the system and its fusion, for the artifact's configuration.
        reference: what the row falls back to; None = the composition's own.
    """
    scorer = bake(model.backbone, model.fusion)
    if isinstance(model, WithEvidence):
        return _ranking(model.behaviour, scorer, system, fusion, model.affinity)
    return _ranking(reference or Reference.plain(model.reference), scorer, system, fusion)


def behaviour_model(backbone: Backbone, system: str) -> RankingModel:
    """Return the ranking model of a system without user knowledge: its scorer alone."""
    return _ranking(Reference.plain(backbone), bake(backbone), system, "")


def _ranking(
    reference: Reference, scorer: FusedScorer, system: str, fusion: str, affinity: Ease | None = None,
) -> RankingModel:
    block: Any = scorer.blocks[0]
    config = {
        "system": system, "fusion": fusion, EVERYONE: affinity is not None,
        "backbone": {
            "n_items": scorer.n_items, "dim": scorer.dim, "layers": len(scorer.blocks), "heads": block.heads,
            "max_len": scorer.max_len, "dropout": scorer.dropout}}
    return RankingModel(reference, scorer, config, affinity)
