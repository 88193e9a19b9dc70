"""Any row of the table of systems, trained and calibrated for serving: what `freshet fit --system` runs.

The order is `models.fitting.freshet`'s: scorers and knowledge on the training part without its newest tenth, thresholds
on that tenth, and then both scorers take it in too. A row with knowledge is served within its calibrated trust radius,
and a row without has no thresholds: there is nothing to trust and nothing to refresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class FittedRow:
    """What `fit_row` made.

    Args:
        ranking, knowledge: what ranking and knowledge workers load; None = without knowledge of users.
        margins: of held-out events per user, nats: what the judge's clip is chosen on.
        epsilon, min_history: of `schemas.calibration.Calibration`.
        evidence: the figures these rest on.
        metrics: of training.
        source: what `knowledge` was kept of.
    """

    ranking: RankingModel | GenerativeRanking
    knowledge: SavedSource | None = None
    margins: list[FloatArray] = field(default_factory=list)
    epsilon: float = 0.0
    min_history: int = 1
    evidence: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    source: Source | None = None

    def save(self, folder: Path, items: Sequence[str], texts: Sequence[str]) -> None:
        """Write every file of the models into `folder`; ids and texts of the items in row order."""
        self.ranking.save(folder, items, texts)
        if self.knowledge is not None:
            self.knowledge.save(folder)


def training_split(fold: Fold) -> Split:
    """Return a split of which everything is trained on and nothing tested."""
    return Split("stream_time", fold, fold.sequences, fold.sequences.offsets[1:], extends=True)


def fit_row(system: System, context: Context) -> FittedRow:
    """Train and calibrate a row; Freshet's own is trained by `models.fitting.freshet.fit`.

    Args:
        context: on a split as of `training_split`.
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
    done = score_events(
        fold.sequences, fold.begin, model.reference, bake(model.backbone, model.fusion), source, context.settings.llm,
        seed=fit.seed, progress=lambda at, total: calibrating(at, total, {}))
    epsilon, evidence = calibrate_epsilon(done, fit.harm)
    min_history, more = calibrate_min_history(done, epsilon)
    model = extend_scorers(model, system, None, context)
    ranking = ranking_model(model, system.name, system.fusion)
    kept = keep(source, system, context.settings, context.llm()[0], context.dataset.users)
    ranking.config["knowledge"] = kept.config
    return FittedRow(
        ranking, kept, margins_by_user(done), epsilon, min_history, evidence | more,
        figures("knowledge", about), source)
