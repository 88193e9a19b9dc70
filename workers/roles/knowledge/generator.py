"""Generates knowledge: language model, item states and knowledge source behind one call. A model update replaces all.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import orjson

from models.knowledge.generation import Generation
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.serving.bake import load_ranking
from models.serving.live_source import LiveSource, padded
from models.serving.ranking_model import TEXTS, RankingModel
from models.serving.saved_source import load_live
from models.systems.lwgr.knowledge import KnowledgeModel
from schemas.artifacts import Artifact, Registry
from schemas.deployments import adapter_folder, base_of
from schemas.errors import ArtifactError, FreshetError
from schemas.messages import ModelUpdate
from schemas.settings import Settings
from workers.store.banks.bank import banks

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedVersion:
    """The loaded parts of a model version that generate knowledge."""

    cache: ItemCache
    ranking: RankingModel
    live: LiveSource
    items: list[str]


class LlmGenerator:
    """Generates knowledge from histories of item ids.

    A version without knowledge of users (`dense`, `generative`) needs no language model, so none is loaded.

    Args:
        settings: settings of the language model: users per pass, newest items read.
        llm, parts: None = the version has no knowledge of users.
        dim: width of the generated vectors; defined also for a version without knowledge.
        model_version: the version that generated knowledge is labelled with.
    """

    def __init__(
        self, settings: Settings, llm: LanguageModel | None, parts: OpenedVersion | None, dim: int, model_version: str,
    ) -> None:
        self._settings = settings
        self._language = llm
        self._base = model_version
        self._lora: str | None = None  # the adapter in use, as the language model calls it
        self.dim = dim
        self._put(parts, model_version)

    @classmethod
    def load(cls, settings: Settings, artifact: Artifact) -> Self:
        """Return the generator of a fitted model. Item states that are not cached yet are encoded first.

        Raises:
            FreshetError: the language model or a file of the artifact is missing or does not fit.
        """
        return cls(settings, *_opened(settings, artifact, None), artifact.model_version)

    def generate(self, histories: Sequence[Sequence[str]], users: Sequence[str] = ()) -> Generation:
        """Return the knowledge of users from their item ids, oldest first. Unknown items are skipped.

        Args:
            users: the users' ids, for sources that look at other users; () = not known.

        Raises:
            FreshetError: the model in use has no knowledge of users.
        """
        known = [[self._rows[item] for item in history if item in self._rows] for history in histories]
        made = self._parts.live.generate(
            self._ranking.user_hidden(known), known, users, self._settings.llm.batch)
        evidence = self._ranking.affinity.evidence(padded(known, self._ranking.max_len))
        return replace(made, items=evidence.items.numpy(), weights=evidence.weights.numpy())

    def counters(self) -> dict[str, int]:
        """Return what the language model has done so far, for the role's progress file."""
        llm = self._language
        return {"llm_calls": llm.calls if llm else 0, "llm_tokens": llm.tokens if llm else 0}

    def apply(self, update: ModelUpdate) -> None:
        """Load what an update names: another artifact, a LoRA adapter, or the base model (adapter null).

        Raises:
            FreshetError: it is missing, damaged or does not fit; nothing has changed.
        """
        try:
            self._load(update)
        except Exception:
            # A source that was loaded before the failure may have put an adapter of its own into the language model.
            if self._language is not None:
                self._language.use_adapter(self._lora)
            raise

    def _load(self, update: ModelUpdate) -> None:
        registry = Registry(self._settings.home)
        parts, base = self._made, self._base
        wanted = base_of(update.model_version)  # an adapter only fits the model it was trained with
        if wanted != base and (
                update.adapter is None or "+" in update.model_version or wanted in registry.versions()):
            parts, base = self._another(registry.open(wanted)), wanted
        name = None
        if update.adapter is not None:
            # peft uses it as a module name: no dots, no slashes
            name = "lora_" + hashlib.blake2b(update.adapter.encode(), digest_size=6).hexdigest()
            self._llm.load_adapter(adapter_folder(registry.folder, update.adapter), name)
        if self._language is not None:
            self._language.use_adapter(name)
        self._base, self._lora = base, name
        self._put(parts, update.model_version)

    def _another(self, artifact: Artifact) -> OpenedVersion | None:
        """Return the parts of another version. The language model is loaded with the first version that needs it."""
        # Check this first: loading a source may replace the adapter in use with one of its own.
        if (dim := load_ranking(artifact).dim) != self.dim:
            raise ArtifactError(f"model {artifact.model_version} is {dim} wide, but the store and the model in use are "
                                f"{self.dim} wide; restart with another store to change the width")
        self._language, parts, _ = _opened(self._settings, artifact, self._language)
        return parts

    def _put(self, parts: OpenedVersion | None, model_version: str) -> None:
        self._made, self.has_knowledge = parts, parts is not None
        self._rows = {item: row for row, item in enumerate(parts.items)} if parts is not None else {}
        self.model_version = model_version

    @property
    def _parts(self) -> OpenedVersion:
        if self._made is None:
            raise FreshetError(f"model {self.model_version} has no knowledge of users: there is nothing to generate")
        return self._made

    @property
    def _llm(self) -> LanguageModel:
        if self._language is None:
            raise FreshetError(f"model {self.model_version} has no knowledge of users and needs no language model")
        return self._language

    @property
    def _ranking(self) -> RankingModel:
        return self._parts.ranking

    @property
    def _cache(self) -> ItemCache:
        return self._parts.cache

    @property
    def _knowledge(self) -> KnowledgeModel:
        """The model of soft instructions, which adapters are trained for."""
        if self._parts.live.knowledge is None:
            raise FreshetError(
                f"the knowledge of model {self.model_version} does not come from soft instructions, and no adapter can "
                "be trained for it; run the role alignment with `freshet fit --system freshet` or `lwgr`")
        return self._parts.live.knowledge


def _opened(
    settings: Settings, artifact: Artifact, llm: LanguageModel | None,
) -> tuple[LanguageModel | None, OpenedVersion | None, int]:
    """Return the language model if loaded or needed, the parts if there is knowledge, and the width of vectors."""
    if not artifact.fitted_calibration().knowledge:
        return llm, None, load_ranking(artifact).dim
    items, texts = artifact.items(), list(orjson.loads(artifact.path(TEXTS).read_bytes()))
    if len(items) != len(texts):
        raise ArtifactError(f"model {artifact.model_version} has {len(items)} items but {len(texts)} texts; fit again")
    llm = llm or LanguageModel.load(settings.llm, settings.home / "cache")
    cache = ItemCache.build(
        llm, texts, settings.home / "cache" / "items", _encoded, item_tokens=settings.llm.item_tokens)
    ranking = RankingModel.load(artifact)
    live = load_live(artifact, llm, cache, texts, banks(settings))
    return llm, OpenedVersion(cache, ranking, live, items), ranking.dim


def _encoded(done: int, of: int) -> None:
    log.info("item states: %d of %d", done, of)
