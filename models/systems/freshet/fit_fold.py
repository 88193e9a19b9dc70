"""Trains and calibrates Freshet's composition on a fold."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from models.calibration.evidence import WORDS, calibrate_evidence
from models.calibration.scoring import score_events
from models.compute.pca import condense
from models.data.fold import Fold
from models.evidence.ease import ClosedForm, Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.knowledge.objectives import Objective, PrimalDual
from models.knowledge.training import TrainingPlan, train
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.scorers.training import Keep, extend, train_fused, train_reference
from models.systems.freshet.with_evidence import WithEvidence
from models.systems.lwgr.knowledge import KnowledgeModel
from models.systems.lwgr.source import CodebookSource
from models.trust.radius import ScoredEvents, calibrate_epsilon, calibrate_min_history
from schemas.settings import Settings

Report = Callable[[str, int, int, dict[str, float]], None]
Once = Callable[[str, Callable[[], Any]], Any]
STAGES = ("reference", "fused", "affinity", "knowledge", "calibration", "extension")


@dataclass(frozen=True, slots=True)
class FittedFold:
    """The result of `fit_fold`: Freshet's composition, calibrated.

    Args:
        reference, fused, affinity: the models to serve.
        knowledge: the knowledge model, trained together with the fused scorer's `attention`.
        scored: the held-out events used for calibration.
        epsilon, min_history: see `schemas.calibration.Calibration`.
        evidence: the figures behind these thresholds.
        about: metrics of knowledge training, see `models.knowledge.training.train`.
        metrics: metrics of the other stages: quality on the held-out tenth, epochs, seconds.
    """

    reference: Backbone
    fused: FusedScorer
    affinity: Ease
    knowledge: KnowledgeModel
    scored: ScoredEvents
    epsilon: float
    min_history: int
    evidence: dict[str, float]
    about: dict[str, Any]
    metrics: dict[str, float]


def _make(_: str, make: Callable[[], Any]) -> Any:
    return make()


def fit_fold(
    fold: Fold, known: ItemKnowledge, settings: Settings, llm: LanguageModel, cache: ItemCache, *, extends: bool,
    report: Report | None = None, once: Once = _make, objective: Objective | None = None, bounded: bool = True,
    keep: Keep | None = None, words: tuple[float, ...] = WORDS, shuffled: bool = False,
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
        words: candidates for the weight of texts in the evidence; () = no evidence.
        bounded: False = the fused scorer is served alone, without the reference's share.
        shuffled: calibrate with another user's knowledge: a control (`models.systems.table.CONTROLS`).
    """

    def during(stage: str) -> Callable[[int, int, dict[str, float]], None]:
        return lambda done, total, metrics: report(stage, done, total, metrics) if report is not None else None

    fit, max_len = settings.fit, settings.state.history
    metrics: dict[str, float] = {}
    reference, found = once("sasrec", lambda: train_reference(fold, fit, max_len, during("reference"), keep))
    metrics |= {f"reference_{name}": value for name, value in found.items()}
    # The artifact stores half precision; training with it keeps fitted and loaded models equal.
    trained, found = once("sasrec+text", lambda: train_fused(
        fold, condense(torch.from_numpy(cache.embeddings[: fold.n_items])).half().float(), fit, max_len,
        during("fused"), keep))
    metrics |= {f"fused_{name}": value for name, value in found.items()}
    began = time.monotonic()
    relating = during("affinity")
    affinities: list[Ease] = [] if words else [Ease.none(fold.n_items)]
    form = ClosedForm(fold.training(), fold.n_items, known)
    for at, share in enumerate(words):
        affinities.append(once(f"affinity, words {share:g}", partial(form.solve, Parts(words=share))))
        relating(at + 1, len(words) + 1, {})

    def with_evidence() -> tuple[FusedScorer, Ease, dict[str, float]]:
        scorer = copy.deepcopy(trained)
        return scorer, *calibrate_evidence(
            fold.sequences, fold.begin, reference, scorer, affinities, seed=fit.seed, bounded=bounded,
            shuffled=shuffled)

    name = f"sasrec+text+evidence, words {words}{'' if bounded else ', unbounded'}{', shuffled' if shuffled else ''}"
    calibrated, affinity, found = once(name, with_evidence)
    fused = copy.deepcopy(calibrated)
    metrics |= found
    relating(len(words) + 1, len(words) + 1, {})
    metrics["affinity_seconds"] = time.monotonic() - began
    torch.manual_seed(fit.seed)
    knowledge = KnowledgeModel.create(fit, llm)
    source = CodebookSource(knowledge, cache, llm, settings.llm.history)
    about = train(
        WithEvidence(fused, reference, source, fused.attention, shuffled, affinity), fold,
        TrainingPlan(fit.knowledge_epochs, objective or PrimalDual(), trains_backbone=False, seed=fit.seed,
                     device=fit.device), during("knowledge"))

    began = time.monotonic()
    calibrating = during("calibration")
    done = score_events(
        fold.sequences, fold.begin, reference, fused, source, settings.llm, seed=fit.seed,
        progress=lambda at, total: calibrating(at, total, {}), affinity=affinity, shuffled=shuffled)
    epsilon, evidence = calibrate_epsilon(done, fit.harm)
    min_history, more = calibrate_min_history(done, epsilon)
    metrics["calibration_seconds"] = time.monotonic() - began

    if extends:
        began = time.monotonic()
        going_on = during("extension")
        reference = once("extended sasrec", lambda: extend(
            reference, fold, fit, lambda at, total, now: going_on(at, 2 * total, now), keep))
        extended = once(f"extended {name}", lambda: extend(
            calibrated, fold, fit, lambda at, total, now: going_on(at + total, 2 * total, now), keep))
        extended = copy.deepcopy(extended)
        extended.attention = fused.attention  # the extension does not involve user vectors
        fused = extended
        if words:
            whole = once(f"extended affinity, {affinity.parts}", lambda: ClosedForm(
                fold.sequences, fold.n_items, known).solve(affinity.parts))
            affinity = replace(whole, half_life=affinity.half_life)
        metrics["extension_seconds"] = time.monotonic() - began
    return FittedFold(
        reference, fused, affinity, knowledge, done, epsilon, min_history, evidence | more, about, metrics)
