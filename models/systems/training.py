"""Trains the rows of `models.systems.table` and their controls.

The backbone comes first, together with the frozen reference if the row has knowledge. Knowledge is then trained on top
(`models.knowledge.training`). At the end, as in `freshet fit`, the scorers are trained further on the held-out rows if
the protocol does that, while the knowledge parts stay fixed.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from models.calibration.parts import NAMES
from models.calibration.reference import fit_reference
from models.compute.pca import condense
from models.generative.scorer import rank_generative
from models.generative.training import extend_generative, train_generative
from models.knowledge.composition import Composed
from models.knowledge.objectives import FixedPenalty, Objective
from models.knowledge.sources import FROZEN
from models.knowledge.training import TrainingPlan
from models.knowledge.training import train as train_jointly
from models.measuring.outcomes import Outcome
from models.measuring.protocols import Age
from models.scorers import training
from models.scorers.backbone import Backbone
from models.systems.context import Context, Trained
from models.systems.freshet.fit_fold import fit_fold
from models.systems.freshet.with_evidence import WithEvidence
from models.systems.lwgr.source import CodebookSource
from models.systems.registry import FUSIONS, OBJECTIVES, SOURCES
from models.systems.table import System
from models.systems.untrained import PARTS as PARTS_OF
from models.systems.untrained import UNTRAINED, closed_form, train_untrained

PARTS: dict[str, tuple[str, ...] | None] = {"no-evidence": None, "no-words": ()}  # parts of the closed form
UNBOUNDED = ("unconstrained", "no-trust-region")


def train(system: System, control: str | None, context: Context) -> Trained:
    """Train a system, or one of its controls."""
    if system.backbone == "sasrec+text+evidence":
        return _freshet(system, control, context)
    if system.has_knowledge:
        return _knowledge(system, control, context)
    if system.backbone in UNTRAINED:
        return train_untrained(system.backbone, control, context)
    return _alone(system, control, context)


def _alone(system: System, control: str | None, context: Context) -> Trained:
    """Train a row without knowledge of users."""
    if system.backbone == "sasrec+evidence":
        return _with_evidence(control, context)
    if control == "extra-steps":
        return _extra_steps(context)
    if system.backbone == "semantic-ids":
        return _generative(context)
    model, about = _text_init(context) if control == "text-init" else context.backbone(system.backbone)
    served = context.served(model, control or system.backbone, shared=control is None)
    reference = None if system.backbone == "sasrec" and control is None else context.reference_ranks()
    ranks = context.rank(served)
    return Trained(lambda _: Outcome(ranks, reference), dict(about))


def compose(system: System, control: str | None, context: Context) -> tuple[Composed, dict[str, Any]]:
    """Train a row with knowledge, without training on held-out rows; return it with its metrics."""
    reference = context.backbone("sasrec")[0]
    backbone = copy.deepcopy(context.backbone(system.backbone)[0])
    adaptor = control if control == "softmax-attention" else system.adaptor
    source = SOURCES[system.instruction, system.extraction, adaptor](context)
    source.attach(backbone)
    model = Composed(
        backbone, reference, source, FUSIONS[system.fusion](context.settings.fit), control == "shuffled-knowledge")
    plan = replace(_plan(context, _objective(system, control)), trains_backbone=False)
    return model, train_jointly(model, context.split.fold, plan, context.during("knowledge"))


def extend_scorers(model: Composed, system: System, control: str | None, context: Context) -> Composed:
    """Train both scorers of a composition further on the held-out rows, if the protocol does that."""
    model.backbone = context.served(model.backbone, _name(system, control))
    model.reference = context.served(model.reference, "sasrec", shared=True)
    return model


def _knowledge(system: System, control: str | None, context: Context) -> Trained:
    model, about = compose(system, control, context)
    return _trained(extend_scorers(model, system, control, context), context, about)


def _freshet(system: System, control: str | None, context: Context) -> Trained:
    """Train like `freshet fit`, on the protocol's fold."""
    llm, cache = context.llm()
    shuffled = control == "shuffled-knowledge"
    made = fit_fold(
        context.split.fold, context.known(), context.settings, llm, cache, extends=context.split.extends,
        report=context.report, once=context.once, keep=context.keep, parts=PARTS.get(control or "", NAMES),
        bounded=control != "unconstrained", shuffled=shuffled, objective=_objective(system, control))
    model = WithEvidence(
        made.fused, made.reference, None if made.knowledge is None else CodebookSource(
            made.knowledge, cache, llm, context.settings.llm.history),
        made.fused.attention, shuffled, made.affinity)
    about = made.metrics | made.about | made.evidence | {
        "epsilon": made.epsilon, "min_history": float(made.min_history)}
    served = system.serving if control not in UNBOUNDED else ""
    return _trained(model, context, about, made.epsilon if served == "trust-region" else None, made.min_history)


def _with_evidence(control: str | None, context: Context) -> Trained:
    """Calibrate the transformer with the closed form, and with item knowledge in it if a control names a part."""
    split, fold, parts = context.split, context.split.fold, PARTS_OF[control]
    found, about = fit_reference(
        fold, context.backbone("sasrec")[0], closed_form(context, parts, fold.training()), context.settings.fit.seed)
    if split.extends:
        whole = closed_form(context, parts, fold.sequences)
        found = replace(found, backbone=context.served(found.backbone, "sasrec", shared=True),
                        affinity=replace(whole, half_life=found.affinity.half_life))
    ranks = context.rank(found.backbone, found.weigh)
    return Trained(lambda _: Outcome(ranks, None if control is None else context.reference_ranks()), dict(about))


def _name(system: System, control: str | None) -> str:
    return system.name if control is None else f"{system.name}, {control}"


def _objective(system: System, control: str | None) -> Objective:
    if control == "unconstrained":
        return Objective()
    return FixedPenalty() if control == "fixed-penalty" else OBJECTIVES[system.objective]()


def _trained(
    model: Composed, context: Context, about: dict[str, Any], epsilon: float | None = None, least: int = 1,
) -> Trained:
    model.eval().requires_grad_(False)
    def rank(age: Age) -> Outcome:
        generating = context.during(f"knowledge, {age.name}")
        ranks = model.rank(
            context.split.test, context.split.begin, age, epsilon, least,
            lambda done, total: generating(done, total, {}), context.split.rows())
        about[f"informed_{age.name}"] = model.informed
        return Outcome(ranks, context.reference_ranks())

    return Trained(rank, about, model)


def _plan(context: Context, objective: Objective) -> TrainingPlan:
    fit = context.settings.fit
    return TrainingPlan(fit.knowledge_epochs, objective, seed=fit.seed, device=fit.device)


def _generative(context: Context) -> Trained:
    fit, fold = context.settings.fit, context.split.fold
    model, about = train_generative(fold, context.semantic_ids(), fit, context.max_len, context.during("generative"))
    if context.split.extends:
        model = extend_generative(model, fold, fit, context.during("extension (generative)"))
    beams = context.during("beams")
    ranks = rank_generative(
        model, context.split.test, context.split.begin, lambda done, total: beams(done, total, {}),
        only=context.split.rows())
    return Trained(lambda _: Outcome(ranks, context.reference_ranks()), about)


def _extra_steps(context: Context) -> Trained:
    reference = context.backbone("sasrec")[0]
    model = Composed(copy.deepcopy(reference), reference, None, None)
    about = train_jointly(
        model, context.split.fold, replace(_plan(context, Objective()), none_is_an_epoch=False, snapshots=FROZEN),
        context.during("extra steps"))
    ranks = context.rank(context.served(model.backbone, "extra-steps"))
    return Trained(lambda _: Outcome(ranks, context.reference_ranks()), about)


def _text_init(context: Context) -> tuple[Backbone, dict[str, float]]:
    """Train a plain backbone whose item vectors start at the leading components of the item texts, in usual scale."""
    fit, fold = context.settings.fit, context.split.fold
    torch.manual_seed(fit.seed)
    model = Backbone(fold.n_items, fit.dim, fit.layers, fit.heads, context.max_len, fit.dropout, fold.fresh())
    with torch.no_grad():
        start = condense(torch.from_numpy(context.llm()[1].embeddings), fit.dim)
        has = (start != 0).any(1)
        model.items[has, : start.shape[1]] = 0.02 * start[has]
    return training.train_scorer(model, fold, fit, context.during("text-initialised reference"), context.keep)

