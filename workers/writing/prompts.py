"""Prompts: packaged files with a version, and the cleaning of what language models answer."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from models.data.texts import clean
from models.data.written import MAX_WRITTEN
from workers.writing.provider import Asked

FOLDER = Path(__file__).parent / "prompts"
MOST_KEYWORDS, LONGEST_KEYWORD, MOST_WORDS = 24, 48, 5  # of an answer; of a keyword in characters and words
FEWEST_KEYWORDS = 3  # an answer with fewer is none: an excuse or a question
MAX_INPUT = 1200  # characters of what is described; 12 titles of a history are 960
_MARK = re.compile(r"^\s*(?:[-*•·–]\s*|\d{1,2}[.)]\s+)?[\"'`]*|[\s.\"'`]+$")
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_LEAD = re.compile(r"^(here (are|is)[^:]*|keywords?|answer|next)\s*:\s*", re.IGNORECASE)


class Prompt(BaseModel):
    """A prompt file.

    Args:
        name: the file's, such as `items`.
        version: of the texts; recorded answers belong to a version.
        form: what an answer must be.
        answer_tokens, usual_tokens: the most of an answer, and what an estimate reckons with.
        system, user: for models that follow instructions; `{input}` in `user` is what is described.
        completion: for models that continue a text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = Field(ge=1)
    form: str = Field(pattern="^(keywords|text)$")
    answer_tokens: int = Field(ge=1, le=4096)
    usual_tokens: int = Field(ge=1)
    system: str
    user: str = Field(pattern=r"\{input\}")
    completion: str = Field(pattern=r"\{input\}")

    @property
    def id(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"

    def key(self, about: str) -> str:
        """Return the key under which an answer about this input is kept and recorded."""
        return hashlib.sha256(f"{self.id}|{clean(about, MAX_INPUT)}".encode()).hexdigest()[:32]

    def asks(self, about: str) -> Asked:
        """Return what a language model is asked about an input, which is cleaned and bounded first."""
        text = clean(about, MAX_INPUT)
        return Asked(
            self.key(about), self.id, text, self.system, self.user.replace("{input}", text),
            self.completion.replace("{input}", text), self.answer_tokens)

    def said(self, answer: str, *, cut: bool = False) -> str:
        """Return an answer in the prompt's form, cleaned and bounded; "" if it is not of that form.

        Args:
            cut: the model was stopped before its end, so the last keyword may be half of one.
        """
        return keywords(answer, cut=cut) if self.form == "keywords" else clean(_THOUGHT.sub(" ", answer), MAX_WRITTEN)


@cache
def prompt_named(name: str) -> Prompt:
    """Return a packaged prompt: `items` or `users`."""
    fields = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    tidy = {key: value.strip() if isinstance(value, str) else value for key, value in fields.items()}
    return Prompt.model_validate({"name": name} | tidy)


def keywords(answer: str, *, cut: bool = False) -> str:
    """Return the keywords of an answer, lower case, each once, separated by commas; "" if it is no list of keywords.

    Commas, semicolons and line breaks separate; without any, words do. Numbering, bullets and quotes are left out, and
    so is what is longer than a keyword: a sentence of introduction or excuse.
    """
    lines = [_LEAD.sub("", clean(line, 4000)) for line in _THOUGHT.sub(" ", answer).splitlines()]
    parts = [part for line in lines for part in re.split(r"[,;|]", line) if part.strip()]
    if len(parts) == 1 and "." not in parts[0]:
        parts = parts[0].split()
    if cut:
        parts = parts[:-1]
    found: dict[str, None] = {}
    for part in parts:
        word = _MARK.sub("", part).lower()
        if word and len(word) <= LONGEST_KEYWORD and len(word.split()) <= MOST_WORDS:
            found.setdefault(word)
    return _bounded(list(found)[:MOST_KEYWORDS]) if len(found) >= FEWEST_KEYWORDS else ""


def _bounded(words: Sequence[str]) -> str:
    text = ""
    for word in words:
        longer = f"{text}, {word}" if text else word
        if len(longer) > MAX_WRITTEN:
            break
        text = longer
    return text
