"""The language model, the item states and the knowledge model behind one call; swapped whole on a model update."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import orjson

from models.item_cache import ItemCache
from models.knowledge import Generation, KnowledgeModel
from models.llm import LanguageModel
from models.system import TEXTS, RankingModel, load_knowledge
from schemas.artifacts import Artifact, Registry
from schemas.deployments import base_of
from schemas.errors import ArtifactError
from schemas.messages import ModelUpdate
from schemas.settings import Settings
from workers.model_updates import adapter_folder

log = logging.getLogger(__name__)


class LlmGenerator:
    """Knowledge from histories of item ids.

    Args:
        settings: of the language model: users per pass, newest items read.
        model_version: what is written on the knowledge it makes.
    """

    def __init__(
        self, settings: Settings, llm: LanguageModel, cache: ItemCache, ranking: RankingModel,
        knowledge: KnowledgeModel, items: Sequence[str], model_version: str,
    ) -> None:
        self._settings = settings
        self._llm = llm
        self._base = model_version
        self._put(cache, ranking, knowledge, items, model_version)

    @classmethod
    def load(cls, settings: Settings, artifact: Artifact) -> Self:
        """Return the generator of a fitted model; item states that are not cached yet are encoded first.

        Raises:
            FreshetError: the language model or a file of the artifact is absent or does not fit.
        """
        llm = LanguageModel.load(settings.llm, settings.home / "cache")
        return cls(settings, llm, *_parts(settings, artifact, llm), artifact.model_version)

    @property
    def dim(self) -> int:
        """Width of the vectors it makes."""
        return self._ranking.reference.dim

    def generate(self, histories: Sequence[Sequence[str]]) -> Generation:
        """Return the knowledge of users from their item ids, oldest first; unknown items are passed over."""
        known = [[self._rows[item] for item in history if item in self._rows] for history in histories]
        made = self._knowledge.generate(
            self._ranking.user_hidden(known), _padded(known, self._settings.llm.history), self._cache, self._llm,
            self._settings.llm.batch)
        evidence = self._ranking.affinity.evidence(_padded(known, self._ranking.max_len))
        return replace(made, items=evidence.items.numpy(), weights=evidence.weights.numpy())

    def apply(self, update: ModelUpdate) -> None:
        """Load what an update names: another artifact, a LoRA adapter, or (adapter null) the base model again.

        Raises:
            FreshetError: it is absent, damaged or does not fit; nothing has changed.
        """
        registry = Registry(self._settings.home)
        parts, base = None, self._base
        wanted = base_of(update.model_version)  # an adapter is of the model it was trained with, and of no other
        if wanted != base and (
                update.adapter is None or "+" in update.model_version or wanted in registry.versions()):
            artifact = registry.open(wanted)
            parts, base = _parts(self._settings, artifact, self._llm), artifact.model_version
            if parts[1].reference.dim != self.dim:
                raise ArtifactError(f"model {base} is {parts[1].reference.dim} wide, the store and the model in use "
                                    f"{self.dim}; restart with another store to change that")
        name = None
        if update.adapter is not None:
            # peft makes module names of it: no dots, no slashes
            name = "lora_" + hashlib.blake2b(update.adapter.encode(), digest_size=6).hexdigest()
            self._llm.load_adapter(adapter_folder(registry.folder, update.adapter), name)
        self._llm.use_adapter(name)
        self._base = base
        self.model_version = update.model_version
        if parts is not None:
            self._put(*parts, update.model_version)

    def _put(self, cache: ItemCache, ranking: RankingModel, knowledge: KnowledgeModel, items: Sequence[str],
             model_version: str) -> None:
        self._cache, self._ranking, self._knowledge = cache, ranking, knowledge
        self._rows = {item: row for row, item in enumerate(items)}
        self.model_version = model_version


def _padded(histories: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Return the newest `width` items of each history (B, width), oldest first, −1 = none."""
    out = np.full((len(histories), width), -1, np.int64)
    for row, items in zip(out, histories, strict=True):
        newest = items[-width:]
        row[:len(newest)] = newest
    return out


def _parts(
    settings: Settings, artifact: Artifact, llm: LanguageModel,
) -> tuple[ItemCache, RankingModel, KnowledgeModel, list[str]]:
    items, texts = artifact.items(), list(orjson.loads(artifact.path(TEXTS).read_bytes()))
    if len(items) != len(texts):
        raise ArtifactError(f"model {artifact.model_version} has {len(items)} items but {len(texts)} texts; fit anew")
    cache = ItemCache.build(
        llm, texts, settings.home / "cache" / "items", _encoded, item_tokens=settings.llm.item_tokens)
    return cache, RankingModel.load(artifact), load_knowledge(artifact, llm), items


def _encoded(done: int, of: int) -> None:
    log.info("item states: %d of %d", done, of)


