"""The language model of the settings, on this machine: continues a text with examples, since it may be a base model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from schemas.settings import Settings
from workers.terminal.stages import Stages
from workers.writing.provider import Answer, Asked

if TYPE_CHECKING:  # these import torch
    from models.language.writer import Writer

BATCH = 32  # questions per pass
LOADING_STALL_S = 600.0  # seconds without progress; the first time, 1 GB is unpacked


class LocalProvider:
    """A `Provider` on transformers. The model is loaded when it is first asked.

    Args:
        settings: of the language model.
        stages: shows its loading.
    """

    def __init__(self, settings: Settings, stages: Stages) -> None:
        self._settings, self._stages = settings, stages
        self.model, self.about = settings.llm.name, f"{settings.llm.name} on this machine"
        self._writer: Writer | None = None

    def cost(self, read: float, written: float) -> float | None:
        """See `Provider.cost`: nothing."""
        return 0.0

    def answers(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """See `Provider.answers`."""
        from models.language.generation import answer

        if not asked:
            return
        writer = self._load()
        tokens = writer.llm.tokenizer
        order = sorted(asked, key=lambda question: len(question.input))  # of like length, to limit padding
        for begin in range(0, len(order), BATCH):
            part = order[begin : begin + BATCH]
            texts = answer(writer, [question.completion for question in part], max(one.tokens for one in part))
            for question, text in zip(part, texts, strict=True):
                read = len(tokens(question.completion, add_special_tokens=False).input_ids)
                written = len(tokens(text, add_special_tokens=False).input_ids)
                yield Answer(
                    question.key, text, self.model, read, written, cut=written >= question.tokens,
                    refused="" if text.strip() else "no answer")

    def _load(self) -> Writer:
        from models.language.llm import LanguageModel
        from models.language.writer import Writer

        if self._writer is None:
            with self._stages.stage("language model", LOADING_STALL_S):
                self._writer = Writer(LanguageModel.load(self._settings.llm, self._settings.home / "cache"))
        return self._writer
