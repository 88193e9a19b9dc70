"""Any row of the table of systems, trained and calibrated for serving: what `freshet fit --system` runs.

The order is `models.fitting`'s: scorers and knowledge on the training part without its newest tenth, thresholds on that
tenth, and then both scorers take it in too. A row with knowledge is served within its calibrated trust radius, and a
row without has no thresholds: there is nothing to trust and nothing to refresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.calibration import calibrate_epsilon, calibrate_min_history, margins_by_user, replay
from models.composition import Source
from models.dataset import FloatArray
from models.generative import extend_generative, train_generative
from models.generative_ranking import GenerativeRanking
from models.kept import Kept, keep
from models.protocols import Split
from models.recipes import compose, go_on
from models.serving import bake, behaviour_model, ranking_model
from models.system import RankingModel
from models.systems import System
from models.training import Fold
from models.workshop import Workshop


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
    knowledge: Kept | None = None
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


def fit_row(system: System, shop: Workshop) -> FittedRow:
    """Train and calibrate a row; Freshet's own is trained by `models.fitting.fit`.

    Args:
        shop: on a split as of `training_split`.
    """
    if system.has_knowledge:
        return _with_knowledge(system, shop)
    return _generative(shop) if system.backbone == "semantic-ids" else _behaviour(system, shop)


def _behaviour(system: System, shop: Workshop) -> FittedRow:
    trained, about = shop.backbone(system.backbone)
    served = shop.served(trained, system.backbone, shared=True)
    return FittedRow(behaviour_model(served, system.name), metrics=_figures("reference", about))


def _generative(shop: Workshop) -> FittedRow:
    fit, fold = shop.settings.fit, shop.split.fold
    model, about = train_generative(fold, shop.semantic_ids(), fit, shop.max_len, shop.during("generative"))
    model = extend_generative(model, fold, fit, shop.during("extension (generative)"))
    return FittedRow(GenerativeRanking(model), metrics=_figures("generative", about))


def _with_knowledge(system: System, shop: Workshop) -> FittedRow:
    fit, fold = shop.settings.fit, shop.split.fold
    model, about = compose(system, None, shop)
    source = model.source
    assert source is not None  # noqa: S101 - the row has knowledge
    model.eval().requires_grad_(False)
    calibrating = shop.during("calibration")
    done = replay(
        fold.sequences, fold.begin, model.reference, bake(model.backbone, model.fusion), None, None, None,
        shop.settings.llm, seed=fit.seed, progress=lambda at, total: calibrating(at, total, {}), source=source)
    epsilon, evidence = calibrate_epsilon(done, fit.harm)
    min_history, more = calibrate_min_history(done, epsilon)
    model = go_on(model, system, None, shop)
    ranking = ranking_model(model, system.name, system.fusion)
    kept = keep(source, system, shop.settings, shop.llm()[0], shop.dataset.users)
    ranking.config["knowledge"] = kept.config
    return FittedRow(
        ranking, kept, margins_by_user(done), epsilon, min_history, evidence | more,
        _figures("knowledge", about), source)


def _figures(stage: str, about: Mapping[str, object]) -> dict[str, float]:
    return {f"{stage}_{name}": float(value) for name, value in about.items() if isinstance(value, (int, float))}
