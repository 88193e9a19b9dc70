"""The table of systems. A system is backbone × instruction × extraction × adaptor × fusion × objective, by names of
parts; adding one is adding a row and the parts it lacks. Controls are the same rows with one thing changed.

Backbone and, where there is knowledge, the frozen reference it is measured against are trained first; knowledge is then
trained on top (`models.joint_training`). What is shared is trained once per `Workshop`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from models import training
from models.backbone import Backbone
from models.composition import Composed
from models.dataset import Dataset
from models.evaluation import hidden_before, target_ranks
from models.fusion import condense
from models.generative import extend_generative, rank_generative, train_generative
from models.holistic import texts_with_neighbours
from models.item_cache import ItemCache
from models.joint_training import Plan
from models.joint_training import train as train_jointly
from models.llm import LanguageModel
from models.objectives import FixedPenalty, Objective
from models.parts import FUSIONS, OBJECTIVES, SOURCES
from models.protocols import Age, Outcome, Ranks, Split
from models.semantic_ids import quantise
from schemas.errors import FreshetError
from schemas.settings import Settings

Report = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class System:
    """A row of the table.

    Args:
        name: what `--system` takes.
        about: one line for people.
        backbone: "sasrec" (items are ids), "sasrec+text" (ids and item texts) or "sasrec+text+neighbours" (and the
            mean of each text's nearest); "semantic-ids" is a generative one, and takes no knowledge yet.
        instruction, extraction: what the language model is asked, and what is kept of its answer; together they name
            the source of knowledge (`models.parts.SOURCES`). "" = no knowledge of users.
        adaptor: what turns states into vectors of the backbone's width; part of the source.
        fusion: how vectors change the user's state (`models.parts.FUSIONS`).
        objective: of the knowledge, or of the backbone where there is none (`models.parts.OBJECTIVES`).
        serving: "" = fused scores as they are, "trust-region" = within the calibrated radius of the reference.
    """

    name: str
    about: str
    backbone: str = "sasrec"
    instruction: str = ""
    extraction: str = ""
    adaptor: str = ""
    fusion: str = ""
    objective: str = "softmax"
    serving: str = ""

    @property
    def has_knowledge(self) -> bool:
        """Whether it reads knowledge of users."""
        return bool(self.instruction)

    @property
    def needs_llm(self) -> bool:
        """Whether it cannot be trained without a language model."""
        return self.has_knowledge or self.backbone != "sasrec"

    def controls(self) -> tuple[str, ...]:
        """Return the names of its controls."""
        if not self.has_knowledge:
            return ("extra-steps", "text-init") if self.name == "dense" else ()
        own = {"primal-dual": ("unconstrained", "fixed-penalty")}.get(self.objective, ())
        return ("shuffled-knowledge", *own, *(("softmax-attention",) if self.adaptor == "holistic-attention" else ()))


SYSTEMS = {system.name: system for system in (
    System("dense", "behaviour alone: SASRec, full softmax; the reference of the others"),
    System("generative", "semantic IDs of item texts, spelled by a decoder within the catalogue's trie (TIGER-style)",
           backbone="semantic-ids"),
    System("grasp", "descriptions of users and items, their ten nearest, holistic attention",
           backbone="sasrec+text+neighbours", instruction="descriptions", extraction="neighbours",
           adaptor="holistic-attention", fusion="concat-3"),
    System("lwgr", "soft instructions from parallel codebooks, attention at the start token, primal–dual bound on harm",
           instruction="parallel-codebooks", extraction="cached-states", adaptor="hybrid-experts",
           fusion="start-attention", objective="primal-dual"),
)}
CONTROLS = {
    "extra-steps": "as many further steps as knowledge takes, without knowledge",
    "text-init": "item vectors start at their texts' embeddings and are trained on",
    "shuffled-knowledge": "every user gets another one's knowledge, in training and test",
    "unconstrained": "likelihood alone, no bound on harm",
    "fixed-penalty": "λ = 1 throughout",
    "softmax-attention": "weights of the holistic attention sum to 1",
}


def system_named(name: str, control: str | None = None) -> System:
    """Return a row by name.

    Raises:
        FreshetError: there is no such system, or it has no such control.
    """
    if name not in SYSTEMS:
        raise FreshetError(f"unknown system {name!r}; there are {', '.join(SYSTEMS)}")
    if control is not None and control not in SYSTEMS[name].controls():
        has = ", ".join(SYSTEMS[name].controls()) or "none"
        raise FreshetError(f"system {name!r} has no control {control!r}; it has {has}")
    return SYSTEMS[name]


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained system.

    Args:
        rank: gives an `Outcome` on the test rows for an age of knowledge.
        about: metrics of training; "history" has one entry per epoch of knowledge.
    """

    rank: Callable[[Age], Outcome]
    about: dict[str, Any]


@dataclass
class Workshop:
    """Data, settings and what systems of one protocol and seed share, made when first asked for.

    Args:
        language: opens language model and item cache; called at most once.
        report: called with stage, steps done, steps in all and metrics.
    """

    dataset: Dataset
    split: Split
    settings: Settings
    language: Callable[[], tuple[LanguageModel, ItemCache]]
    report: Report = lambda *_: None
    _made: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` made the first time it was asked for by this name."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def max_len(self) -> int:
        """Items of a history that backbones read."""
        return self.settings.state.history

    def llm(self) -> tuple[LanguageModel, ItemCache]:
        """Return language model and item cache."""
        return self.once("llm", self.language)

    def texts(self) -> torch.Tensor:
        """Return condensed item texts (n_items, ≤ 128)."""
        return self.once("texts", lambda: condense(torch.from_numpy(self.llm()[1].embeddings)))

    def during(self, stage: str) -> Callable[[int, int, dict[str, float]], None]:
        """Return what reports the progress of a stage."""
        return lambda done, total, metrics: self.report(stage, done, total, metrics)

    def backbone(self, kind: str) -> tuple[Backbone, dict[str, float]]:
        """Return a trained backbone by kind (see `System`) and its metrics; not yet extended."""
        fit, fold = self.settings.fit, self.split.fold
        if kind == "sasrec":
            return self.once(kind, lambda: training.train_reference(fold, fit, self.max_len, self.during("reference")))
        text = self.texts() if kind == "sasrec+text" else texts_with_neighbours(self.llm()[1].embeddings)
        return self.once(kind, lambda: training.train_fused(
            fold, text, fit, self.max_len, self.during("scorer with texts")))

    def served(self, model: Backbone, name: str) -> Backbone:
        """Return a scorer as it is tested: gone on over the held-out rows where the protocol says so."""
        if not self.split.extends:
            return model
        return self.once(f"extended {name}", lambda: training.extend(
            model, self.split.fold, self.settings.fit, self.during(f"extension ({name})")))

    def reference_ranks(self) -> Ranks:
        """Return what behaviour alone makes of the test."""
        return self.once("reference ranks", lambda: self.rank(
            self.served(self.backbone("sasrec")[0], "sasrec")))

    def rank(self, model: Backbone) -> Ranks:
        """Return what a scorer without knowledge makes of the test."""
        rows, hidden = hidden_before(model, self.split.test, self.split.begin)
        side = model.item_side()
        return Ranks(rows, *target_ranks(
            lambda part: model.scores(hidden[part], side), model.n_items, self.split.test, rows))


def train(system: System, control: str | None, shop: Workshop) -> Trained:
    """Train a system, or one of its controls."""
    if system.has_knowledge:
        return _knowledge(system, control, shop)
    if control == "extra-steps":
        return _extra_steps(shop)
    if system.backbone == "semantic-ids":
        return _generative(shop)
    model, about = _text_init(shop) if control == "text-init" else shop.backbone(system.backbone)
    served = shop.served(model, control or system.backbone)
    reference = None if system.backbone == "sasrec" and control is None else shop.reference_ranks()
    ranks = shop.rank(served)
    return Trained(lambda _: Outcome(ranks, reference), dict(about))


def _knowledge(system: System, control: str | None, shop: Workshop) -> Trained:
    reference = shop.backbone("sasrec")[0]
    backbone = copy.deepcopy(shop.backbone(system.backbone)[0])
    adaptor = control if control == "softmax-attention" else system.adaptor
    source = SOURCES[system.instruction, system.extraction, adaptor](shop)
    objective = OBJECTIVES[system.objective]()
    if control in {"unconstrained", "fixed-penalty"}:
        objective = Objective() if control == "unconstrained" else FixedPenalty()
    model = Composed(
        backbone, reference, source, FUSIONS[system.fusion](shop.settings.fit), control == "shuffled-knowledge")
    about = train_jointly(model, shop.split.fold, _plan(shop, objective), shop.during("knowledge"))
    name = f"{system.name} {control}"
    model.backbone = shop.served(model.backbone, name)
    model.reference = shop.served(reference, "sasrec")
    generating = shop.during("knowledge of the test")

    def rank(age: Age) -> Outcome:
        return Outcome(model.rank(
            shop.split.test, shop.split.begin, age, None, lambda done, total: generating(done, total, {})),
            shop.reference_ranks())

    return Trained(rank, about)


def _plan(shop: Workshop, objective: Objective) -> Plan:
    fit = shop.settings.fit
    device = "cuda" if torch.cuda.is_available() and shop.settings.llm.device != "cpu" else "cpu"
    return Plan(fit.knowledge_epochs, objective, seed=fit.seed, device=device)


def _generative(shop: Workshop) -> Trained:
    fit, fold = shop.settings.fit, shop.split.fold
    ids = quantise(shop.texts(), seed=fit.seed)
    model, about = train_generative(fold, ids, fit, shop.max_len, shop.during("generative"))
    if shop.split.extends:
        model = extend_generative(model, fold, fit, shop.during("extension (generative)"))
    beams = shop.during("beams")
    ranks = rank_generative(model, shop.split.test, shop.split.begin, lambda done, total: beams(done, total, {}))
    return Trained(lambda _: Outcome(ranks), about)


def _extra_steps(shop: Workshop) -> Trained:
    reference = shop.backbone("sasrec")[0]
    model = Composed(copy.deepcopy(reference), reference, None, None)
    about = train_jointly(
        model, shop.split.fold, replace(_plan(shop, Objective()), none_is_an_epoch=False), shop.during("extra steps"))
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
    return training._train(model, fold, fit, shop.during("text-initialised reference"))

