"""The parts that rows of `models.systems.SYSTEMS` name: sources of knowledge, fusions, objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from models.composition import Source
from models.fusion import KnowledgeAttention
from models.objectives import Objective, PrimalDual
from schemas.settings import FitSettings

if TYPE_CHECKING:
    from models.systems import Workshop

SOURCES: dict[tuple[str, str, str], Callable[[Workshop], Source]] = {}
"""(instruction, extraction, adaptor) → source."""

FUSIONS: dict[str, Callable[[FitSettings], nn.Module]] = {
    "start-attention": lambda fit: KnowledgeAttention(fit.dim, fit.heads),
}
OBJECTIVES: dict[str, Callable[[], Objective]] = {"softmax": Objective, "primal-dual": PrimalDual}
