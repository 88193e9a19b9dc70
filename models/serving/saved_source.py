"""Knowledge sources on disk: what an artifact stores of a trained source, and how to load it for serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.compute.neighbours import Banks, exact
from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.data.texts import clean
from models.knowledge.sources import Moments, Source
from models.language.generation import answer
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.language.writer import Writer
from models.serving.knowledge_model import knowledge_config, load_knowledge
from models.serving.live_source import LiveSource
from models.serving.ranking_model import KNOWLEDGE
from models.systems.coco.prompts import PromptSource
from models.systems.grasp.descriptions import Descriptions
from models.systems.grasp.holistic import HolisticSource
from models.systems.kar.towers import SHARED, SPECIFIC, Towers
from models.systems.kar.written import STEPS, WrittenSource, encode_texts, user_prompts
from models.systems.lwgr.source import CodebookSource
from models.systems.table import System
from schemas.artifacts import Artifact
from schemas.errors import ArtifactError
from schemas.settings import Settings

USERS = "users.json"
# Source kinds by `System.instruction`. Each lists the buffers that are outside its state dict but cannot be recomputed:
# another machine may flip the sign of a principal component.
CODEBOOKS, PROMPTS, WRITTEN, DESCRIPTIONS = (
    "parallel-codebooks", "prompt-codebook", "factorised-prompts", "descriptions")
_BUFFERS = {CODEBOOKS: (), PROMPTS: ("texts",), WRITTEN: (), DESCRIPTIONS: ("item", "similar", "users")}


@dataclass(frozen=True, slots=True)
class SavedSource:
    """A trained source as stored in an artifact.

    Args:
        config: what is needed to build an untrained source of the same shape; stored as "knowledge" in the model's
            configuration.
        tensors: weights and buffers.
        users: names of the users the source has rows for, in row order.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    users: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write tensors and users into an artifact's folder."""
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in self.tensors.items()},
            folder / KNOWLEDGE)
        if self.users:
            (folder / USERS).write_bytes(orjson.dumps(self.users))


def keep(
    source: Source, system: System, settings: Settings, llm: LanguageModel, users: Sequence[str],
) -> SavedSource:
    """Return the stored form of a trained source.

    Args:
        users: user names in row order.
    """
    config = {
        "source": system.instruction, "dim": settings.fit.dim, "hidden": llm.hidden_size,
        "instructions": settings.fit.instructions, "codes": settings.fit.codes, "llm": llm.model_id,
        "layers": llm.layers, "item_tokens": settings.llm.item_tokens, "history": settings.llm.history}
    if isinstance(source, CodebookSource):
        return SavedSource(config, dict(source.knowledge.state_dict()))
    buffers = dict(source.named_buffers())
    tensors = source.state_dict() | {name: buffers[name] for name in _BUFFERS[system.instruction]}
    known = [users[row] for row in source.members()] if isinstance(source, HolisticSource) else []
    return SavedSource(config, tensors, known)


def load_live(
    artifact: Artifact, llm: LanguageModel, cache: ItemCache, texts: Sequence[str], banks: Banks = exact,
) -> LiveSource:
    """Load an artifact's knowledge source, with the language model it was trained with.

    Args:
        texts: item texts of the catalogue, whose states `cache` holds.
        banks: builds the banks for neighbour search.

    Raises:
        ArtifactError: the source was trained with a language model of another name or width, or its files are
            inconsistent.
    """
    config = knowledge_config(artifact, llm)
    name = config.get("source", CODEBOOKS)
    if name not in _LOAD:
        raise ArtifactError(f"model {artifact.model_version} has knowledge of an unknown kind, {name!r}")
    try:
        loaded = _Loaded(artifact, config, load_file(artifact.path(KNOWLEDGE)), llm, cache, texts, banks)
        return _LOAD[name](loaded)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"model {artifact.model_version} is not of this release: {error}") from error


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Everything needed to rebuild a source."""

    artifact: Artifact
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    llm: LanguageModel
    cache: ItemCache
    texts: Sequence[str]
    banks: Banks

    def fill(self, source: Source) -> None:
        """Copy the stored weights and buffers into an untrained source."""
        tensors = dict(self.tensors)
        for name in _BUFFERS[self.config["source"]]:
            setattr(source, name, tensors.pop(name))
        source.load_state_dict(tensors)
        source.eval().requires_grad_(False)


def _codebooks(saved: _Loaded) -> LiveSource:
    model = load_knowledge(saved.artifact, saved.llm)
    source = CodebookSource(model, saved.cache, saved.llm, saved.config["history"]).requires_grad_(False).eval()
    return LiveSource(lambda moments, _: source(moments), source.items, model.codes, knowledge=model)


def _prompts(saved: _Loaded) -> LiveSource:
    config = saved.config
    source = PromptSource(
        config["dim"], config["instructions"], config["codes"], saved.cache, saved.llm, config["history"])
    saved.fill(source)
    return LiveSource(lambda moments, _: source(moments), source.items, source.book.codes)


class _UncachedDescriptions(Descriptions):
    """Descriptions of live histories. They are not stored because the same history rarely comes again."""

    def __call__(self, histories: IntArray, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return descriptions (B, H')."""
        return Descriptions(self._llm, self.cache)(histories, progress)


def _descriptions(saved: _Loaded) -> LiveSource:
    nobody = Sequences(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64))
    source = HolisticSource(
        nobody, _UncachedDescriptions(saved.llm, saved.cache), saved.config["history"], saved.config["dim"],
        similar=saved.tensors["similar"])
    saved.fill(source)
    source.use_user_bank(source.users, saved.banks)
    users = orjson.loads(saved.artifact.path(USERS).read_bytes())

    def make(moments: Moments, _: Sequence[Sequence[int]]) -> Tensor:
        source.clear_neighbours()
        return source(moments)

    return LiveSource(make, source.items, users={user: row for row, user in enumerate(users)})


def _written(saved: _Loaded) -> LiveSource:
    source = WrittenSource(torch.zeros(0, saved.config["hidden"]), np.zeros(0, np.int64))
    source.experts = Towers(2, saved.tensors["experts.gate"].shape[1], saved.config["dim"], SHARED, SPECIFIC)
    saved.fill(source)
    writer: list[Writer] = []  # a copy of the language model, made on first use

    def make(moments: Moments, histories: Sequence[Sequence[int]]) -> Tensor:
        asked = user_prompts(histories, saved.texts)  # about the newest items
        # As in training, shorter histories get no text.
        rows = [row for row, prompt in enumerate(asked) if prompt and len(histories[row]) >= STEPS[0]]
        states = torch.zeros(len(asked), saved.llm.hidden_size)
        if rows:
            writer[:] = writer or [Writer(saved.llm)]
            said = answer(writer[0], [asked[row] for row in rows])
            states[rows] = encode_texts(writer[0], [clean(text) for text in said])
        return source.about(states)

    return LiveSource(make, source.items)


_LOAD: dict[str, Callable[[_Loaded], LiveSource]] = {
    CODEBOOKS: _codebooks, PROMPTS: _prompts, WRITTEN: _written, DESCRIPTIONS: _descriptions}
