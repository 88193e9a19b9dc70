"""Trains and calibrates all models of a version. The order ensures that every held-out score is on unseen events.

1. Train reference and fused scorer without the newest tenth of the training part, which chooses their epochs.
2. Fit the closed form to the same part, alone and with item knowledge. One half of the tenth's users chooses what
   counts and how much; the other half says what each part adds.
3. Train knowledge on top of the frozen scorers; the tenth updates λ and chooses the epoch.
4. Calibrate trust (ε, B, shortest history) on that other half. No scorer has been trained on it yet.
5. Train both scorers and the item–item weights on the tenth as well, if the protocol does that. These are served.

`fit` is what the command runs. `fit_fold` implements the order for any fold; `models.systems.training` uses it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.data.dataset import Dataset, Events, FloatArray
from models.data.fold import Fold
from models.evidence.item_knowledge import ItemKnowledge
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.scorers.training import Keep
from models.serving.ranking_model import EVERYONE, RankingModel
from models.systems.freshet.fit_fold import Report, fit_fold
from models.systems.lwgr.knowledge import KnowledgeModel
from models.trust.radius import margins_by_user
from schemas.calibration import Worth
from schemas.settings import Settings


@dataclass(frozen=True, slots=True)
class Fitted:
    """The result of `fit`.

    Args:
        ranking, knowledge: the models; knowledge None = user vectors do not pay and are not used.
        margins: margins of held-out events by user, nats; the judge's clip is chosen from them.
        epsilon, min_history: see `schemas.calibration.Calibration`.
        evidence: the figures behind these thresholds.
        metrics: training metrics: quality on the held-out tenth, epochs, λ, seconds per stage.
        parts: what each part is worth.
    """

    ranking: RankingModel
    knowledge: KnowledgeModel | None
    margins: list[FloatArray]
    epsilon: float
    min_history: int
    evidence: dict[str, float]
    metrics: dict[str, float]
    parts: list[Worth] = field(default_factory=list)

    def save(self, folder: Path, items: Sequence[str], texts: Sequence[str]) -> None:
        """Write the models' files into `folder`; `items` and `texts` are in row order."""
        self.ranking.save(folder, items, texts, self.knowledge)


def fit(
    dataset: Dataset, events: Events, settings: Settings, llm: LanguageModel, cache: ItemCache,
    report: Report | None = None, keep: Keep | None = None, items: ItemKnowledge | None = None,
) -> Fitted:
    """Train and calibrate everything on `events`, the training part of `dataset`.

    Args:
        cache: item states of `dataset.texts`, built with `llm`.
        report: called with stage (one of `STAGES`), steps done, total steps and metrics.
        keep: storage for trained behaviour scorers; None = no storage.
        items: what is known of the items; None = the texts of `dataset`.
    """
    # Tied events in the order of the file would teach the transformer how the file was sorted.
    fold = Fold.of(events, len(dataset.users), len(dataset.items), seed=settings.fit.seed)
    made = fit_fold(
        fold, items or ItemKnowledge(dataset.texts), settings, llm, cache, extends=True, report=report, keep=keep)
    config = {
        "backbone": {
            "n_items": fold.n_items, "dim": settings.fit.dim, "layers": settings.fit.layers,
            "heads": settings.fit.heads, "max_len": settings.state.history, "dropout": settings.fit.dropout},
        "knowledge": {
            "dim": settings.fit.dim, "hidden": llm.hidden_size, "instructions": settings.fit.instructions,
            "codes": settings.fit.codes, "llm": llm.model_id, "layers": llm.layers,
            "item_tokens": settings.llm.item_tokens, "history": settings.llm.history},
        # With nothing but user vectors switched on, users without them have the reference.
        EVERYONE: bool(made.affinity.parts) or float(made.fused.reference_share) < 1,
    }
    return Fitted(
        RankingModel(made.reference, made.fused, config, made.affinity), made.knowledge, margins_by_user(made.scored),
        made.epsilon, made.min_history, made.evidence,
        made.metrics | figures("knowledge", made.about), made.parts)


def figures(stage: str, about: Mapping[str, object]) -> dict[str, float]:
    """Return the numeric results of a stage, prefixed with its name, for a version's card."""
    return {f"{stage}_{name}": float(value) for name, value in about.items() if isinstance(value, (int, float))}
