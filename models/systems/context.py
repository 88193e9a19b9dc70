"""What systems share under one protocol and seed: data, behaviour scorers, language model, the reference's ranks.

Everything is created on first use and reused: seven rows do not train seven references.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from models.calibration.reference import fit_reference
from models.compute.neighbours import Banks, exact
from models.compute.pca import Whitening, condense
from models.data.dataset import Dataset, IntArray
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.item_knowledge import ItemKnowledge
from models.evidence.reference import Reference
from models.evidence.words import words_condensed
from models.generative.semantic_ids import SemanticIds, quantise
from models.knowledge.composition import Composed
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.measuring.outcomes import Outcome, Ranks
from models.measuring.protocols import Age, Split
from models.scorers import training
from models.scorers.backbone import Backbone
from models.scorers.backbones import BACKBONES
from models.scorers.ranks import hidden_before, target_ranks
from models.scorers.snapshots import before
from models.systems.grasp.holistic import texts_with_neighbours
from models.systems.kar.written import KnowledgeScorer, item_prompts, knowledge_states
from schemas.settings import Settings

Report = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained system.

    Args:
        rank: returns an `Outcome` on the test rows for an age of knowledge.
        about: training metrics; "history" has one entry per epoch of knowledge training.
        model: the composition, for systems with knowledge; `models.serving.bake` prepares it for serving.
    """

    rank: Callable[[Age], Outcome]
    about: dict[str, Any]
    model: Composed | None = None


@dataclass
class Context:
    """Data, settings and shared parts for one protocol and seed, created on first use.

    Args:
        language: opens language model and item cache; called at most once.
        report: called with stage, steps done, total steps and metrics.
        banks: builds the banks of embeddings for neighbour search.
        items: returns what is known of the items; called at most once. None = their texts.
    """

    dataset: Dataset
    split: Split
    settings: Settings
    language: Callable[[], tuple[LanguageModel, ItemCache]]
    report: Report = lambda *_: None
    banks: Banks = exact
    keep: training.Keep | None = None
    items: Callable[[], ItemKnowledge] | None = None
    _made: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, computed on the first call for this name."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def max_len(self) -> int:
        """Maximum number of items that backbones read from a history."""
        return self.settings.state.history

    def llm(self) -> tuple[LanguageModel, ItemCache]:
        """Return language model and item cache."""
        return self.once("llm", self.language)

    def known(self) -> ItemKnowledge:
        """Return what is known of the catalogue's items."""
        return self.once("items", self.items or (lambda: ItemKnowledge(self.dataset.texts)))

    def texts(self) -> torch.Tensor:
        """Return condensed item texts (n_items, ≤ 128)."""
        embeddings = self.llm()[1].embeddings
        # artifacts store half precision
        return self.once("texts", lambda: condense(torch.from_numpy(embeddings)).half().float())

    def semantic_ids(self) -> SemanticIds:
        """Return semantic IDs of the catalogue, made from the number of text components in the settings."""
        fit = self.settings.fit
        return quantise(self.texts()[:, : fit.id_components], seed=fit.seed)

    def during(self, stage: str) -> Callable[[int, int, dict[str, float]], None]:
        """Return a callback that reports the progress of a stage."""
        return lambda done, total, metrics: self.report(stage, done, total, metrics)

    def backbone(self, kind: str) -> tuple[Backbone, dict[str, float]]:
        """Return a trained backbone by kind (see `models.systems.table.System`) and its metrics; not yet extended."""
        fit, fold = self.settings.fit, self.split.fold
        if kind == "sasrec":
            return self.once(kind, lambda: training.train_reference(
                fold, fit, self.max_len, self.during("reference"), self.keep))
        if kind == "sasrec+written":
            return self.once(kind, self._with_written)
        if kind in BACKBONES:
            return self.once(kind, lambda: self._of_others(kind))

        if kind == "sasrec+words":
            return self.once(kind, lambda: training.train_fused(
                fold, words_condensed(self.dataset.texts), fit, self.max_len, self.during("scorer with words"),
                self.keep))

        def with_texts() -> tuple[Backbone, dict[str, float]]:
            text = self.texts() if kind == "sasrec+text" else texts_with_neighbours(
                self.llm()[1].embeddings, self.banks)
            return training.train_fused(fold, text, fit, self.max_len, self.during("scorer with texts"), self.keep)

        return self.once(kind, with_texts)

    def _of_others(self, kind: str) -> tuple[Backbone, dict[str, float]]:
        fit, fold = self.settings.fit, self.split.fold
        torch.manual_seed(fit.seed)
        return training.train_scorer(
            BACKBONES[kind](fold, fit, self.max_len), fold, fit, self.during(f"scorer {kind}"))

    def _with_written(self) -> tuple[Backbone, dict[str, float]]:
        fit, fold = self.settings.fit, self.split.fold
        states = self.written(item_prompts(self.dataset.texts), "texts about items")
        whitened = Whitening(states)(states) * (states != 0).any(1, keepdim=True)
        torch.manual_seed(fit.seed)
        model = KnowledgeScorer(
            whitened, fold.fresh(), fold.n_items, fit.dim, fit.layers, fit.heads, self.max_len, fit.dropout)
        return training.train_scorer(model, fold, fit, self.during("scorer with written texts"), self.keep)

    def written(self, prompts: list[str], stage: str) -> torch.Tensor:
        """Return states (n, H) of the language model's answers to prompts; texts and states are cached on disk."""
        writing = self.during(stage)
        return knowledge_states(
            self.llm()[0], prompts, self.settings.home / "cache" / "written",
            lambda done, total: writing(done, total, {}))

    def served(self, model: Backbone, name: str, shared: bool = False) -> Backbone:
        """Return the scorer for the test: trained further on the held-out rows if the protocol does that.

        Args:
            shared: keep the result under this name for other systems.
        """
        if not self.split.extends:
            return model

        # What is kept has a key of this package's code: a change to a class of others would go unnoticed.
        keep = self.keep if type(model).__module__.split(".")[0] == "models" else None

        def extended() -> Backbone:
            return training.extend(model, self.split.fold, self.settings.fit, self.during(f"extension ({name})"), keep)

        return self.once(f"extended {name}", extended) if shared else extended()

    def reference(self) -> Reference:
        """Return the reference, calibrated and not yet trained on the held-out rows."""
        fold, fit = self.split.fold, self.settings.fit
        return self.once("reference", lambda: fit_reference(
            fold, self.backbone("sasrec")[0], self._closed_form("closed form", fold.training()), fit.seed))[0]

    def served_reference(self) -> Reference:
        """Return the reference for the test: fitted on the held-out rows, too, if the protocol does that."""
        found = self.reference()
        if not self.split.extends:
            return found
        whole = self._closed_form("extended closed form", self.split.fold.sequences)
        return replace(found, backbone=self.served(found.backbone, "sasrec", shared=True),
                       affinity=replace(whole, half_life=found.affinity.half_life))

    def _closed_form(self, name: str, sequences: Sequences) -> Ease:
        return self.once(name, lambda: Ease.fit(sequences, self.split.fold.n_items))

    def reference_ranks(self) -> Ranks:
        """Return the ranks of the test events by behaviour alone."""
        def ranks() -> Ranks:
            reference = self.served_reference()
            return self.rank(reference.backbone, reference.weigh)

        return self.once("reference ranks", ranks)

    def rank(self, model: Backbone, weigh: Callable[[torch.Tensor, IntArray], torch.Tensor] | None = None) -> Ranks:
        """Return the ranks of the test events by a scorer without knowledge.

        Args:
            weigh: changes logits (m, n), given the histories (m, H).
        """
        test = self.split.test
        rows, hidden = hidden_before(model, test, self.split.begin, rows=self.split.rows())
        side = model.item_side()

        def scores(part: torch.Tensor) -> torch.Tensor:
            logits = model.scores(hidden[part], side)
            return logits if weigh is None else weigh(logits, before(test, rows[part.numpy()], model.max_len))

        return Ranks(rows, *target_ranks(scores, model.n_items, test, rows))
