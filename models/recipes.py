"""How each row of `models.systems` and its controls are trained.

Backbone and, where there is knowledge, the frozen reference it is measured against come first; knowledge is then
trained on top (`models.joint_training`). As `freshet fit` does, scorers go on over the held-out rows at the end where
the protocol says so, and what was trained on top stays.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from models import training
from models.affinity import Affinity
from models.backbone import Backbone
from models.composition import Composed
from models.evidence import WithEvidence
from models.evidence_calibration import WORDS
from models.fitting import fit_fold
from models.fusion import FusedScorer, condense
from models.generative import extend_generative, rank_generative, train_generative
from models.joint_training import Plan
from models.joint_training import train as train_jointly
from models.knowledge import KnowledgeModel
from models.objectives import FixedPenalty, Objective
from models.parts import FUSIONS, OBJECTIVES, SOURCES
from models.protocols import Age, Outcome
from models.sources import FROZEN, CodebookSource
from models.systems import System
from models.workshop import Trained, Workshop

EVIDENCE: dict[str, tuple[float, ...]] = {"no-evidence": (), "no-words": (0.0,)}  # what words may count there
TAUGHT = ("shuffled-knowledge", "unconstrained", "fixed-penalty")
UNBOUNDED = ("unconstrained", "no-trust-region")


def train(system: System, control: str | None, shop: Workshop) -> Trained:
    """Train a system, or one of its controls."""
    if system.backbone == "sasrec+text+evidence":
        return _freshet(system, control, shop)
    if system.has_knowledge:
        return _knowledge(system, control, shop)
    if control == "extra-steps":
        return _extra_steps(shop)
    if system.backbone == "semantic-ids":
        return _generative(shop)
    model, about = _text_init(shop) if control == "text-init" else shop.backbone(system.backbone)
    served = shop.served(model, control or system.backbone, shared=control is None)
    reference = None if system.backbone == "sasrec" and control is None else shop.reference_ranks()
    ranks = shop.rank(served)
    return Trained(lambda _: Outcome(ranks, reference), dict(about))


def compose(system: System, control: str | None, shop: Workshop) -> tuple[Composed, dict[str, Any]]:
    """Train a row with knowledge, and return it as no held-out row has been trained on yet, with its metrics."""
    reference = shop.backbone("sasrec")[0]
    backbone = copy.deepcopy(shop.backbone(system.backbone)[0])
    adaptor = control if control == "softmax-attention" else system.adaptor
    source = SOURCES[system.instruction, system.extraction, adaptor](shop)
    source.attach(backbone)
    model = Composed(
        backbone, reference, source, FUSIONS[system.fusion](shop.settings.fit), control == "shuffled-knowledge")
    plan = _plan(shop, _objective(system, control))
    return model, train_jointly(model, shop.split.fold, plan, shop.during("knowledge"))


def go_on(model: Composed, system: System, control: str | None, shop: Workshop) -> Composed:
    """Let both scorers of what `compose` made go on over the held-out rows, where the protocol says so."""
    model.backbone = shop.served(model.backbone, _name(system, control))
    model.reference = shop.served(model.reference, "sasrec", shared=True)
    return model


def _knowledge(system: System, control: str | None, shop: Workshop) -> Trained:
    model, about = compose(system, control, shop)
    return _trained(go_on(model, system, control, shop), shop, about)


def _freshet(system: System, control: str | None, shop: Workshop) -> Trained:
    """Train as `freshet fit` does, on the protocol's fold; where a control changes how knowledge is trained, by
    `joint_training`.
    """
    fold = shop.split.fold
    llm, cache = shop.llm()
    shuffled = control == "shuffled-knowledge"

    def teach(
        reference: Backbone, fused: FusedScorer, knowledge: KnowledgeModel, affinity: Affinity,
    ) -> dict[str, Any]:
        source = CodebookSource(knowledge, cache, llm, shop.settings.llm.history)
        model = WithEvidence(fused, reference, source, fused.attention, shuffled, affinity)
        plan = replace(_plan(shop, _objective(system, control)), trains_backbone=False)
        return train_jointly(model, fold, plan, shop.during("knowledge"))

    made = fit_fold(
        fold, shop.dataset.texts, shop.settings, llm, cache, extends=shop.split.extends, report=shop.report,
        once=shop.once, keep=shop.keep, words=EVIDENCE.get(control or "", WORDS), bounded=control != "unconstrained",
        shuffled=shuffled, teach=teach if control in TAUGHT else None)
    model = WithEvidence(
        made.fused, made.reference, CodebookSource(made.knowledge, cache, llm, shop.settings.llm.history),
        made.fused.attention, shuffled, made.affinity)
    about = made.metrics | made.about | made.evidence | {
        "epsilon": made.epsilon, "min_history": float(made.min_history)}
    served = system.serving if control not in UNBOUNDED else ""
    return _trained(model, shop, about, made.epsilon if served == "trust-region" else None, made.min_history)


def _name(system: System, control: str | None) -> str:
    return system.name if control is None else f"{system.name}, {control}"


def _objective(system: System, control: str | None) -> Objective:
    if control == "unconstrained":
        return Objective()
    return FixedPenalty() if control == "fixed-penalty" else OBJECTIVES[system.objective]()


def _trained(
    model: Composed, shop: Workshop, about: dict[str, Any], epsilon: float | None = None, least: int = 1,
) -> Trained:
    model.eval().requires_grad_(False)
    def rank(age: Age) -> Outcome:
        generating = shop.during(f"knowledge, {age.name}")
        return Outcome(model.rank(
            shop.split.test, shop.split.begin, age, epsilon, least, lambda done, total: generating(done, total, {}),
            shop.split.rows()),
            shop.reference_ranks())

    return Trained(rank, about, model)


def _plan(shop: Workshop, objective: Objective) -> Plan:
    fit = shop.settings.fit
    return Plan(fit.knowledge_epochs, objective, seed=fit.seed, device=fit.device)


def _generative(shop: Workshop) -> Trained:
    fit, fold = shop.settings.fit, shop.split.fold
    model, about = train_generative(fold, shop.semantic_ids(), fit, shop.max_len, shop.during("generative"))
    if shop.split.extends:
        model = extend_generative(model, fold, fit, shop.during("extension (generative)"))
    beams = shop.during("beams")
    ranks = rank_generative(
        model, shop.split.test, shop.split.begin, lambda done, total: beams(done, total, {}), only=shop.split.rows())
    return Trained(lambda _: Outcome(ranks, shop.reference_ranks()), about)


def _extra_steps(shop: Workshop) -> Trained:
    reference = shop.backbone("sasrec")[0]
    model = Composed(copy.deepcopy(reference), reference, None, None)
    about = train_jointly(
        model, shop.split.fold, replace(_plan(shop, Objective()), none_is_an_epoch=False, snapshots=FROZEN),
        shop.during("extra steps"))
    ranks = shop.rank(shop.served(model.backbone, "extra-steps"))
    return Trained(lambda _: Outcome(ranks, shop.reference_ranks()), about)


def _text_init(shop: Workshop) -> tuple[Backbone, dict[str, float]]:
    """Train a plain backbone whose item vectors start at their texts' leading components, of the usual size."""
    fit, fold = shop.settings.fit, shop.split.fold
    torch.manual_seed(fit.seed)
    model = Backbone(fold.n_items, fit.dim, fit.layers, fit.heads, shop.max_len, fit.dropout, fold.fresh())
    with torch.no_grad():
        start = condense(torch.from_numpy(shop.llm()[1].embeddings), fit.dim)
        has = (start != 0).any(1)
        model.items[has, : start.shape[1]] = 0.02 * start[has]
    return training.train_scorer(model, fold, fit, shop.during("text-initialised reference"), shop.keep)

