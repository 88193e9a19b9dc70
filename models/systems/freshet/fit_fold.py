"""Trains and calibrates Freshet's composition on a fold."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from models.calibration.fused import Once, calibrate_scores, make
from models.calibration.parts import NAMES, Weights
from models.calibration.scoring import score_events
from models.compute.pca import condense
from models.data.fold import Fold
from models.evidence.ease import ClosedForm, Ease
from models.evidence.item_knowledge import ItemKnowledge
from models.evidence.reference import Reference
from models.knowledge.objectives import Objective, PrimalDual
from models.knowledge.training import TrainingPlan, train
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.measuring.intervals import paired_interval
from models.measuring.metrics import ndcg
from models.scorers.fusion import FusedScorer
from models.scorers.training import Keep, extend, train_fused, train_reference
from models.systems.freshet.with_evidence import WithEvidence
from models.systems.lwgr.knowledge import KnowledgeModel
from models.systems.lwgr.source import CodebookSource
from models.trust.radius import ScoredEvents, calibrate_epsilon, calibrate_min_history
from schemas.calibration import Worth
from schemas.settings import FitSettings, Settings

Report = Callable[[str, int, int, dict[str, float]], None]
STAGES = ("reference", "fused", "affinity", "knowledge", "calibration", "extension")


@dataclass(frozen=True, slots=True)
class FittedFold:
    """The result of `fit_fold`: Freshet's composition, calibrated.

    Args:
        reference, fused, affinity: the models to serve.
        knowledge: the knowledge model, trained together with the fused scorer's `attention`; None = it does not pay.
        scored: the held-out events used for calibration.
        epsilon, min_history: see `schemas.calibration.Calibration`.
        evidence: the figures behind these thresholds.
        about: metrics of knowledge training, see `models.knowledge.training.train`.
        metrics: metrics of the other stages: quality on the held-out tenth, epochs, seconds.
        parts: what each part is worth, see `models.calibration.parts`.
    """

    reference: Reference
    fused: FusedScorer
    affinity: Ease
    knowledge: KnowledgeModel | None
    scored: ScoredEvents
    epsilon: float
    min_history: int
    evidence: dict[str, float]
    about: dict[str, Any]
    metrics: dict[str, float]
    parts: list[Worth] = field(default_factory=list)


def fit_fold(
    fold: Fold, known: ItemKnowledge, settings: Settings, llm: LanguageModel, cache: ItemCache, *, extends: bool,
    report: Report | None = None, once: Once = make, objective: Objective | None = None, bounded: bool = True,
    keep: Keep | None = None, parts: Sequence[str] | None = NAMES, shuffled: bool = False,
) -> FittedFold:
    """Train and calibrate Freshet's composition on a fold.

    Args:
        known: what is known of the catalogue's items.
        cache: states of the item texts, built with `llm`.
        extends: whether scorers are finally trained further on the fold's held-out rows
            (`models.measuring.protocols.Split.extends`).
        report: called with stage (one of `STAGES`), steps done, total steps and metrics.
        once: returns the stored object for a name, or calls a function to make it. It shares parts between systems on
            the same fold (`models.systems.context.Context.once`: "sasrec", "sasrec+text", "extended sasrec", …).
            Shared parts are not modified.
        objective: objective of knowledge training; None = LWGR's Lagrangian.
        keep: storage for trained behaviour scorers; None = no storage.
        parts: parts of the closed form that item knowledge may have; () = behaviour alone, None = no closed form in
            the fused scores.
        bounded: False = the fused scorer is served alone, without the reference's share.
        shuffled: calibrate with another user's knowledge: a control (`models.systems.table.CONTROLS`).
    """

    def during(stage: str) -> Callable[[int, int, dict[str, float]], None]:
        return lambda done, total, metrics: report(stage, done, total, metrics) if report is not None else None

    fit, max_len = settings.fit, settings.state.history
    metrics: dict[str, float] = {}
    backbone, found = once("sasrec", lambda: train_reference(fold, fit, max_len, during("reference"), keep))
    metrics |= {f"reference_{name}": value for name, value in found.items()}
    # The artifact stores half precision; training with it keeps fitted and loaded models equal.
    trained, found = once("sasrec+text", lambda: train_fused(
        fold, condense(torch.from_numpy(cache.embeddings[: fold.n_items])).half().float(), fit, max_len,
        during("fused"), keep))
    metrics |= {f"fused_{name}": value for name, value in found.items()}

    began = time.monotonic()
    relating = during("affinity")
    made = calibrate_scores(
        fold, known, backbone, trained, seed=fit.seed, use=fit.parts, parts=parts, bounded=bounded, once=once,
        step=lambda done, total: relating(done, total, {}))
    reference, weights = made.reference, made.with_vectors
    metrics |= made.metrics | {"affinity_seconds": time.monotonic() - began}

    fused = _fused(trained, weights)
    torch.manual_seed(fit.seed)
    knowledge = KnowledgeModel.create(fit, llm)
    source = CodebookSource(knowledge, cache, llm, settings.llm.history)
    about = train(
        WithEvidence(fused, reference, source, fused.attention, shuffled, weights.affinity), fold,
        TrainingPlan(fit.knowledge_epochs, objective or PrimalDual(), trains_backbone=False, seed=fit.seed,
                     device=fit.device), during("knowledge"))

    began = time.monotonic()
    calibrating = during("calibration")

    def scored(scorer: FusedScorer, weights: Weights, with_vectors: bool) -> ScoredEvents:
        return score_events(
            fold.sequences, made.judging, reference, scorer, source if with_vectors else None, settings.llm,
            seed=fit.seed, progress=lambda at, total: calibrating(at, total, {}), affinity=weights.affinity,
            shuffled=shuffled)

    done = scored(fused, weights, True)
    generating = time.monotonic() - began
    plain_fused = _fused(trained, made.weights)
    others = scored(plain_fused, made.weights, False)
    vectors = _vectors_worth(done, others, fit.parts, generating, fit.instructions)
    if not vectors.used:
        weights, fused, done = made.weights, plain_fused, others
    epsilon, evidence = calibrate_epsilon(done, fit.harm)
    min_history, more = calibrate_min_history(done, epsilon)
    metrics["calibration_seconds"] = time.monotonic() - began

    affinity = weights.affinity
    if extends:
        began = time.monotonic()
        going_on = during("extension")
        reference, extended, affinity = _extended(
            fold, known, reference, trained, weights, fit, once, keep, going_on)
        extended.attention = fused.attention  # the extension does not involve user vectors
        fused = extended
        metrics["extension_seconds"] = time.monotonic() - began
    return FittedFold(
        reference, fused, affinity, knowledge if vectors.used else None, done, epsilon, min_history, evidence | more,
        about, metrics, [*(_with_cost(part, cache) for part in made.parts), vectors])


def _extended(
    fold: Fold, known: ItemKnowledge, reference: Reference, trained: FusedScorer, weights: Weights, fit: FitSettings,
    once: Once, keep: Keep | None, report: Callable[[int, int, dict[str, float]], None],
) -> tuple[Reference, FusedScorer, Ease]:
    """Return reference, fused scorer and closed form after training on the fold's held-out rows, too."""
    backbone = once("extended sasrec", lambda: extend(
        reference.backbone, fold, fit, lambda at, total, now: report(at, 2 * total, now), keep))
    extended = once("extended sasrec+text", lambda: extend(
        trained, fold, fit, lambda at, total, now: report(at + total, 2 * total, now), keep))
    whole = ClosedForm(fold.sequences, fold.n_items, known)
    behaviour = once("extended closed form", whole.solve)
    affinity = weights.affinity
    if affinity.parts:
        affinity = replace(once(f"extended closed form, {affinity.parts}", lambda: whole.solve(weights.affinity.parts)),
                           half_life=affinity.half_life)
    elif affinity.neighbours.shape[1]:
        affinity = replace(behaviour, half_life=affinity.half_life)
    return (replace(reference, backbone=backbone, affinity=replace(
        behaviour, half_life=reference.affinity.half_life)), _fused(extended, weights), affinity)


def _fused(trained: FusedScorer, weights: Weights) -> FusedScorer:
    scorer = copy.deepcopy(trained)
    weights.put(scorer)
    return scorer


def _with_cost(part: Worth, cache: ItemCache) -> Worth:
    """Return a row of the table with the texts that the language model read for it."""
    if part.part != "features":
        return part
    return part.model_copy(update={
        "calls": int((cache.lengths > 0).sum()), "tokens": int(cache.lengths.sum())})


def _vectors_worth(
    done: ScoredEvents, without: ScoredEvents, use: str, seconds: float, instructions: int,
) -> Worth:
    """Return what user vectors add: to the best fused scores without them, no trust region."""
    adds, low, high = paired_interval(done.user, ndcg(done.ranks[:, -1]) - ndcg(without.ranks[:, -1]))
    calls = len(np.unique(done.user * 100_000 + done.length - done.age)) if len(done.user) else 0
    return Worth(part="user_vectors", adds=adds, low=low, high=high, used=low > 0 or use == "on", weight=1.0,
                 events=len(done.user), calls=calls, tokens=calls * instructions, seconds=seconds)
