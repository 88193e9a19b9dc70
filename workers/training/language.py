"""Opens the language model and the item states of a catalogue's texts, as stages of a longer job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.settings import Settings
from workers.terminal.stages import Stages

if TYPE_CHECKING:  # these import torch, which a job that reuses everything does not need
    from models.language.item_cache import ItemCache
    from models.language.llm import LanguageModel

# Seconds without progress after which a stage counts as hung. The first time, 1 GB is unpacked.
MODEL_STALL_S, TEXTS_STALL_S = 600.0, 300.0


def open_language(settings: Settings, texts: list[str], stages: Stages) -> tuple[LanguageModel, ItemCache]:
    """Return the language model and the states of the catalogue's texts. Texts that are not cached are encoded.

    Raises:
        FreshetError: the language model cannot be loaded.
        StalledError: a stage made no progress.
    """
    from models.language.item_cache import ItemCache
    from models.language.llm import LanguageModel

    with stages.stage("language model", MODEL_STALL_S):
        llm = LanguageModel.load(settings.llm, settings.home / "cache")
    with stages.stage("item texts", TEXTS_STALL_S) as step:
        return llm, ItemCache.build(
            llm, texts, settings.home / "cache" / "items", step, item_tokens=settings.llm.item_tokens)
