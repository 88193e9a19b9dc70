"""All models of a version, trained and calibrated in the one order in which each step's evidence is honest.

1. Reference and fused scorer on the training part without its newest tenth, which chooses their epochs.
2. What items say about each other, from the same part; the tenth says how much of it, for how long and how surely.
3. Knowledge on those, frozen; the same tenth moves λ and chooses the epoch.
4. Trust (ε, B, shortest history) on the same tenth, which no scorer has been trained on yet.
5. Both scorers and the items' affinity take in the tenth as well: these are the ones served.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.affinity import Affinity
from models.alignment import train_knowledge
from models.calibration import (
    calibrate_epsilon,
    calibrate_evidence,
    calibrate_min_history,
    margins_by_user,
    replay,
)
from models.dataset import Dataset, Events, FloatArray
from models.fusion import condense
from models.item_cache import ItemCache
from models.knowledge import KnowledgeModel
from models.llm import LanguageModel
from models.system import RankingModel
from models.training import Fold, extend, train_fused, train_reference
from schemas.settings import Settings

Report = Callable[[str, int, int, dict[str, float]], None]
STAGES = ("reference", "fused", "affinity", "knowledge", "calibration", "extension")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `fit` made.

    Args:
        ranking, knowledge: the models, to be written with `ranking.save(folder, items, texts, knowledge)`.
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


def fit(
    dataset: Dataset, events: Events, settings: Settings, llm: LanguageModel, cache: ItemCache,
    report: Report | None = None,
) -> Fitted:
    """Train and calibrate everything on `events`, the training part of `dataset`.

    Args:
        cache: item states of `dataset.texts`, built with `llm`.
        report: called with stage (one of `STAGES`), steps done, steps in all and metrics.
    """

    def during(stage: str) -> Callable[[int, int, dict[str, float]], None]:
        return lambda done, total, metrics: report(stage, done, total, metrics) if report is not None else None

    max_len = settings.state.history
    fold = Fold.of(events, len(dataset.users), len(dataset.items))
    metrics: dict[str, float] = {}
    reference, found = train_reference(fold, settings.fit, max_len, during("reference"))
    metrics |= {f"reference_{name}": value for name, value in found.items()}
    text = condense(torch.from_numpy(cache.embeddings[: len(dataset.items)]))
    # Half precision is what the artifact holds; training with it keeps loaded and fitted models equal.
    fused, found = train_fused(fold, text.half().float(), settings.fit, max_len, during("fused"))
    metrics |= {f"fused_{name}": value for name, value in found.items()}
    began = time.monotonic()
    relating = during("affinity")
    affinity = Affinity.fit(fold.training(), fold.n_items)
    relating(1, 2, {})
    metrics |= calibrate_evidence(fold.sequences, fold.begin, fused, affinity, seed=settings.fit.seed)
    relating(2, 2, {})
    metrics["affinity_seconds"] = time.monotonic() - began
    torch.manual_seed(settings.fit.seed)
    knowledge = KnowledgeModel.create(settings.fit, llm)
    found = train_knowledge(
        fold, reference, fused, knowledge, cache, llm, settings.fit, settings.llm, during("knowledge"))
    metrics |= {f"knowledge_{name}": value for name, value in found.items()}

    began = time.monotonic()
    calibrating = during("calibration")
    done = replay(
        fold.sequences, fold.begin, reference, fused, knowledge, cache, llm, settings.llm, seed=settings.fit.seed,
        progress=lambda at, total: calibrating(at, total, {}), affinity=affinity)
    epsilon, evidence = calibrate_epsilon(done)
    min_history, more = calibrate_min_history(done, epsilon)
    metrics["calibration_seconds"] = time.monotonic() - began

    began = time.monotonic()
    extending = during("extension")
    reference = extend(reference, fold, settings.fit, lambda at, total, now: extending(at, 2 * total, now))
    fused = extend(fused, fold, settings.fit, lambda at, total, now: extending(at + total, 2 * total, now))
    affinity = Affinity.fit(fold.sequences, fold.n_items)
    metrics["extension_seconds"] = time.monotonic() - began
    config = {
        "backbone": {
            "n_items": fold.n_items, "dim": settings.fit.dim, "layers": settings.fit.layers,
            "heads": settings.fit.heads, "max_len": max_len, "dropout": settings.fit.dropout},
        "knowledge": {
            "dim": settings.fit.dim, "hidden": llm.hidden_size, "instructions": settings.fit.instructions,
            "codes": settings.fit.codes, "llm": llm.model_id, "layers": llm.layers,
            "item_tokens": settings.llm.item_tokens, "history": settings.llm.history},
    }
    return Fitted(
        RankingModel(reference, fused, config, affinity), knowledge, margins_by_user(done), epsilon, min_history,
        evidence | more, metrics)
