"""The parts that rows of `models.systems.SYSTEMS` name: sources of knowledge, fusions, objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from models.composition import Source
from models.descriptions import Descriptions
from models.fusion import KnowledgeAttention
from models.holistic import ConcatFusion, HolisticSource, similar_items
from models.kar import WrittenSource, user_prompts, written_about
from models.knowledge import KnowledgeModel
from models.objectives import Judged, Objective, PrimalDual
from models.prompts import GatedFusion, PromptSource
from models.sources import CodebookSource
from schemas.settings import FitSettings

if TYPE_CHECKING:
    from models.workshop import Workshop


def parallel_codebooks(shop: Workshop) -> Source:
    """Return K parallel codebooks whose instructions the language model reads after the cached history."""
    llm, cache = shop.llm()
    torch.manual_seed(shop.settings.fit.seed)
    return CodebookSource(KnowledgeModel.create(shop.settings.fit, llm), cache, llm, shop.settings.llm.history)


def descriptions(shop: Workshop, softmax: bool = False) -> Source:
    """Return descriptions of users with their neighbours, by holistic attention."""
    folder, step = shop.settings.home / "cache" / "descriptions", shop.during("descriptions of users")
    described = shop.once("descriptions", lambda: Descriptions(*shop.llm(), folder))
    similar = shop.once("similar items", lambda: similar_items(shop.llm()[1].embeddings, shop.banks))
    torch.manual_seed(shop.settings.fit.seed)
    return HolisticSource(
        shop.split.fold.training(), described, shop.settings.llm.history, shop.settings.fit.dim, softmax,
        lambda done, total: step(done, total, {}), shop.banks, similar)


def prompts(shop: Workshop) -> Source:
    """Return soft prompts from one codebook whose answers are read by cross-attention."""
    llm, cache = shop.llm()
    fit = shop.settings.fit
    torch.manual_seed(fit.seed)
    return PromptSource(fit.dim, fit.instructions, fit.codes, cache, llm, shop.settings.llm.history)


def written(shop: Workshop) -> Source:
    """Return texts about users, written from the first half of their training events, through the user tower."""
    training = shop.split.fold.training()
    about = written_about(training)
    histories = [training.item[low : low + n].tolist() for low, n in zip(training.offsets[:-1], about, strict=True)]
    states = shop.written(user_prompts(histories, shop.dataset.texts), "texts about users")
    torch.manual_seed(shop.settings.fit.seed)
    return WrittenSource(states, about)


SOURCES: dict[tuple[str, str, str], Callable[[Workshop], Source]] = {
    ("parallel-codebooks", "cached-states", "hybrid-experts"): parallel_codebooks,
    ("prompt-codebook", "prompt-query", "experts"): prompts,
    ("factorised-prompts", "written-text", "hybrid-experts"): written,
    ("descriptions", "neighbours", "holistic-attention"): descriptions,
    ("descriptions", "neighbours", "softmax-attention"): lambda shop: descriptions(shop, softmax=True),
}
"""(instruction, extraction, adaptor) → source."""

FUSIONS: dict[str, Callable[[FitSettings], nn.Module]] = {
    "start-attention": lambda fit: KnowledgeAttention(fit.dim, fit.heads),
    "gated": lambda fit: GatedFusion(fit.dim),
    "concat-1": lambda fit: ConcatFusion(fit.dim, 1),
    "concat-3": lambda fit: ConcatFusion(fit.dim, 3),
}
OBJECTIVES: dict[str, Callable[[], Objective]] = {"softmax": Objective, "primal-dual": PrimalDual, "judged": Judged}
