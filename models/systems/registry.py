"""The parts named in rows of `models.systems.table.SYSTEMS`: knowledge sources, fusions, objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from models.knowledge.objectives import Judged, Objective, PrimalDual
from models.knowledge.sources import Source
from models.scorers.fusion import KnowledgeAttention
from models.systems.coco.prompts import GatedFusion, PromptSource
from models.systems.grasp.descriptions import Descriptions
from models.systems.grasp.holistic import ConcatFusion, HolisticSource, similar_items
from models.systems.kar.written import WrittenSource, newest_step, user_prompts, written_about
from models.systems.lwgr.knowledge import KnowledgeModel
from models.systems.lwgr.source import CodebookSource
from schemas.settings import FitSettings

if TYPE_CHECKING:
    from models.systems.context import Context


def parallel_codebooks(context: Context) -> Source:
    """Return the source with K parallel codebooks, whose instructions follow the cached history (LWGR)."""
    llm, cache = context.llm()
    torch.manual_seed(context.settings.fit.seed)
    return CodebookSource(KnowledgeModel.create(context.settings.fit, llm), cache, llm, context.settings.llm.history)


def descriptions(context: Context, softmax: bool = False) -> Source:
    """Return the source with descriptions of users and their neighbours, through holistic attention (GRASP)."""
    folder, step = context.settings.home / "cache" / "descriptions", context.during("descriptions of users")
    described = context.once("descriptions", lambda: Descriptions(*context.llm(), folder))
    similar = context.once("similar items", lambda: similar_items(context.llm()[1].embeddings, context.banks))
    torch.manual_seed(context.settings.fit.seed)
    return HolisticSource(
        context.split.fold.training(), described, context.settings.llm.history, context.settings.fit.dim, softmax,
        lambda done, total: step(done, total, {}), context.banks, similar)


def prompts(context: Context) -> Source:
    """Return the source with soft prompts from one codebook, whose answers are read by cross-attention (CoCo)."""
    llm, cache = context.llm()
    fit = context.settings.fit
    torch.manual_seed(fit.seed)
    return PromptSource(fit.dim, fit.instructions, fit.codes, cache, llm, context.settings.llm.history)


def written(context: Context) -> Source:
    """Return the source with texts about users, from their first events (KAR).

    Training has a text from the first half of a user's training events. Each predicted event has the last text that
    could have been written before it.
    """
    training, test, rows = context.split.fold.training(), context.split.test, context.split.rows()
    about = written_about(training)
    users = np.arange(len(about))
    asked = test.user(rows)
    ahead = np.unique(np.stack([asked, newest_step(test.known(rows) - test.offsets[asked])], 1), axis=0)
    ahead = ahead[ahead[:, 1] > about[ahead[:, 0]]]
    user, count = np.concatenate([users, ahead[:, 0]]), np.concatenate([about, ahead[:, 1]])
    histories = [
        part.item[low : low + n].tolist() for part, low, n in (
            *((training, training.offsets[one], n) for one, n in zip(users, about, strict=True)),
            *((test, test.offsets[one], n) for one, n in ahead))]
    states = context.written(user_prompts(histories, context.dataset.texts), "texts about users")
    torch.manual_seed(context.settings.fit.seed)
    return WrittenSource(states, count, user, len(users))


SOURCES: dict[tuple[str, str, str], Callable[[Context], Source]] = {
    ("parallel-codebooks", "cached-states", "hybrid-experts"): parallel_codebooks,
    ("prompt-codebook", "prompt-query", "experts"): prompts,
    ("factorised-prompts", "written-text", "hybrid-experts"): written,
    ("descriptions", "neighbours", "holistic-attention"): descriptions,
    ("descriptions", "neighbours", "softmax-attention"): lambda context: descriptions(context, softmax=True),
}
"""(instruction, extraction, adaptor) → source."""

FUSIONS: dict[str, Callable[[FitSettings], nn.Module]] = {
    "start-attention": lambda fit: KnowledgeAttention(fit.dim, fit.heads),
    "gated": lambda fit: GatedFusion(fit.dim),
    "concat-1": lambda fit: ConcatFusion(fit.dim, 1),
    "concat-3": lambda fit: ConcatFusion(fit.dim, 3),
}
OBJECTIVES: dict[str, Callable[[], Objective]] = {"softmax": Objective, "primal-dual": PrimalDual, "judged": Judged}
