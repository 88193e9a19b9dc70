"""The interface to language models that write: prompts in, texts out, with tokens and cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.errors import FreshetError

CHARACTERS_PER_TOKEN = 4.0  # of English; used for estimates, and where a server counts no tokens


class ProviderError(FreshetError):
    """The language model cannot be asked any more; what it answered before is kept."""


class SpendingLimitError(ProviderError):
    """The spending limit is reached; nothing more is asked."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to a language model.

    Args:
        key: hash of prompt, version and input.
        prompt: name and version of the prompt.
        input: what is described, cleaned.
        system, user: messages for models that follow instructions.
        completion: text for models that continue one.
        tokens: the most an answer may have.
    """

    key: str
    prompt: str
    input: str
    system: str
    user: str
    completion: str
    tokens: int

    @property
    def estimate(self) -> int:
        """Tokens that a model probably reads."""
        return 1 + round((len(self.system) + len(self.user)) / CHARACTERS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as the model gave it.

    Args:
        key: of the question.
        text: not cleaned; "" if `refused`.
        model: who answered.
        read, written: tokens of prompt and answer.
        cost: in the currency of the prices.
        cut: whether the model was stopped at the most tokens.
        refused: why there is no text; "" = there is one.
        final: whether another try would end in the same way, so that the refusal is kept.
    """

    key: str
    text: str
    model: str
    read: int = 0
    written: int = 0
    cost: float = 0.0
    cut: bool = False
    refused: str = ""
    final: bool = True


class Provider(Protocol):
    """A language model that answers prompts.

    Attributes:
        model: its name; kept answers are reused for the same name.
        about: where it runs, for people.
    """

    model: str
    about: str

    def cost(self, read: float, written: float) -> float | None:
        """Return what so many tokens cost; None = not known."""

    def answers(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """Yield an answer to each question, in any order, as they arrive. Closing the iterator stops asking.

        Raises:
            SpendingLimitError: the limit is reached; all answers so far were yielded.
            ProviderError: the model cannot be asked at all, such as for a wrong key.
        """
