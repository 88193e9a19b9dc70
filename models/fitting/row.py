"""Trains and calibrates any row of the table of systems for serving: `freshet fit --system`.

The order is that of `models.fitting.freshet`: scorers and knowledge on the training part without its newest tenth,
thresholds on that tenth, then further training of both scorers on the tenth. A row with knowledge is served within its
calibrated trust radius. A row without knowledge has no thresholds, because there is nothing to trust or refresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.calibration.held_out import halves
from models.calibration.scoring import score_events
from models.data.dataset import FloatArray
from models.data.fold import Fold
from models.fitting.freshet import figures
from models.generative.training import extend_generative, train_generative
from models.knowledge.sources import Source
from models.measuring.protocols import Split
from models.serving.bake import bake, behaviour_model, ranking_model
from models.serving.generative import GenerativeRanking
from models.serving.ranking_model import RankingModel
from models.serving.saved_source import SavedSource, keep
from models.systems.context import Context
from models.systems.table import System
from models.systems.training import compose, extend_scorers
from models.trust.radius import calibrate_epsilon, calibrate_min_history, margins_by_user
from schemas.calibration import Worth


@dataclass(frozen=True, slots=True)
class FittedRow:
    """The result of `fit_row`.

    Args:
        ranking, knowledge: what the ranking and knowledge workers load; knowledge None = no user knowledge.
        margins: margins of held-out events by user, nats; the judge's clip is chosen from them.
        epsilon, min_history: see `schemas.calibration.Calibration`.
        evidence: the figures behind these thresholds.
        metrics: training metrics.
        source: the trained source that `knowledge` stores.
        parts: what each part is worth; only Freshet's own row measures it.
    """

    ranking: RankingModel | GenerativeRanking
    knowledge: SavedSource | None = None
    margins: list[FloatArray] = field(default_factory=list)
    epsilon: float = 0.0
    min_history: int = 1
    evidence: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    source: Source | None = None
    parts: list[Worth] = field(default_factory=list)

    def save(self, folder: Path, items: Sequence[str], texts: Sequence[str]) -> None:
        """Write the models' files into `folder`; `items` and `texts` are in row order."""
        self.ranking.save(folder, items, texts)
        if self.knowledge is not None:
            self.knowledge.save(folder)


def training_split(fold: Fold) -> Split:
    """Return a split that uses everything for training and has no test events."""
    return Split("stream_time", fold, fold.sequences, fold.sequences.offsets[1:], extends=True)


def fit_row(system: System, context: Context) -> FittedRow:
    """Train and calibrate a row; for Freshet's own row use `models.fitting.freshet.fit`.

    Args:
        context: context with a split from `training_split`.
    """
    if system.has_knowledge:
        return _with_knowledge(system, context)
    return _generative(context) if system.backbone == "semantic-ids" else _behaviour(system, context)


def _behaviour(system: System, context: Context) -> FittedRow:
    trained, about = context.backbone(system.backbone)
    served = context.served(trained, system.backbone, shared=True)
    return FittedRow(behaviour_model(served, system.name), metrics=figures("reference", about))


def _generative(context: Context) -> FittedRow:
    fit, fold = context.settings.fit, context.split.fold
    model, about = train_generative(fold, context.semantic_ids(), fit, context.max_len, context.during("generative"))
    model = extend_generative(model, fold, fit, context.during("extension (generative)"))
    return FittedRow(GenerativeRanking(model), metrics=figures("generative", about))


def _with_knowledge(system: System, context: Context) -> FittedRow:
    fit, fold = context.settings.fit, context.split.fold
    model, about = compose(system, None, context)
    source = model.source
    assert source is not None  # noqa: S101 - the row has knowledge
    model.eval().requires_grad_(False)
    calibrating = context.during("calibration")
    _, judging = halves(fold.begin, fold.sequences.offsets, fit.seed)  # the other half has chosen the reference
    done = score_events(
        fold.sequences, judging, context.reference(), bake(model.backbone, model.fusion), source,
        context.settings.llm, seed=fit.seed, progress=lambda at, total: calibrating(at, total, {}))
    epsilon, evidence = calibrate_epsilon(done, fit.harm)
    min_history, more = calibrate_min_history(done, epsilon)
    model = extend_scorers(model, system, None, context)
    ranking = ranking_model(model, system.name, system.fusion, context.served_reference())
    kept = keep(source, system, context.settings, context.llm()[0], context.dataset.users)
    ranking.config["knowledge"] = kept.config
    return FittedRow(
        ranking, kept, margins_by_user(done), epsilon, min_history, evidence | more,
        figures("knowledge", about), source)
