"""All models of a version, trained and calibrated in the one order in which each step's evidence is honest.

1. Reference and fused scorer on the training part without its newest tenth, which chooses their epochs.
2. What items say about each other, from the same part and from texts; the tenth says how much of it and how surely.
3. Knowledge on those, frozen; the same tenth moves λ and chooses the epoch.
4. Trust (ε, B, shortest history) on the same tenth, which no scorer has been trained on yet.
5. Both scorers and the items' affinity take in the tenth as well, where the protocol says so: these are served.

`fit` is the product's; `fit_fold` is the order itself, for any fold, and what `models.systems.training` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.data.dataset import Dataset, Events, FloatArray
from models.data.fold import Fold
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.scorers.training import Keep
from models.serving.ranking_model import RankingModel
from models.systems.freshet.fit_fold import Report, fit_fold
from models.systems.lwgr.knowledge import KnowledgeModel
from models.trust.radius import margins_by_user
from schemas.settings import Settings


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `fit` made.

    Args:
        ranking, knowledge: the models.
        margins: of held-out events per user, nats: what the judge's clip is chosen on.
        epsilon, min_history: of `schemas.calibration.Calibration`.
        evidence: the figures these rest on.
        metrics: of training: quality on the held-out tenth, epochs, λ, seconds per stage.
    """

    ranking: RankingModel
    knowledge: KnowledgeModel
    margins: list[FloatArray]
    epsilon: float
    min_history: int
    evidence: dict[str, float]
    metrics: dict[str, float]

    def save(self, folder: Path, items: Sequence[str], texts: Sequence[str]) -> None:
        """Write every file of the models into `folder`; ids and texts of the items in row order."""
        self.ranking.save(folder, items, texts, self.knowledge)


def fit(
    dataset: Dataset, events: Events, settings: Settings, llm: LanguageModel, cache: ItemCache,
    report: Report | None = None, keep: Keep | None = None,
) -> Fitted:
    """Train and calibrate everything on `events`, the training part of `dataset`.

    Args:
        cache: item states of `dataset.texts`, built with `llm`.
        report: called with stage (one of `STAGES`), steps done, steps in all and metrics.
        keep: where trained scorers of behaviour are kept; None = nowhere.
    """
    fold = Fold.of(events, len(dataset.users), len(dataset.items))
    made = fit_fold(fold, dataset.texts, settings, llm, cache, extends=True, report=report, keep=keep)
    config = {
        "backbone": {
            "n_items": fold.n_items, "dim": settings.fit.dim, "layers": settings.fit.layers,
            "heads": settings.fit.heads, "max_len": settings.state.history, "dropout": settings.fit.dropout},
        "knowledge": {
            "dim": settings.fit.dim, "hidden": llm.hidden_size, "instructions": settings.fit.instructions,
            "codes": settings.fit.codes, "llm": llm.model_id, "layers": llm.layers,
            "item_tokens": settings.llm.item_tokens, "history": settings.llm.history},
    }
    return Fitted(
        RankingModel(made.reference, made.fused, config, made.affinity), made.knowledge, margins_by_user(made.scored),
        made.epsilon, made.min_history, made.evidence,
        made.metrics | figures("knowledge", made.about))


def figures(stage: str, about: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers among what a stage found, named after it: what a version's card holds."""
    return {f"{stage}_{name}": float(value) for name, value in about.items() if isinstance(value, (int, float))}
