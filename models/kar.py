"""KAR: what a language model writes about items and about users, encoded, through experts that both share.

arXiv 2306.10933 and its code: factorised prompts ask for the factors a choice may rest on; answers are encoded by their
mean states; a hybrid-expert adaptor (2 shared experts, 5 for each tower, a gate per tower) makes vectors of them. The
user's text is written once, from the first half of the training events, and never used for an event of that half: KAR
stores knowledge beforehand, nothing is refreshed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.backbone import Backbone, ItemSide
from models.composition import Moments, Source
from models.dataset import IntArray
from models.encoding import encode, encode_prefix
from models.experts import HybridExperts
from models.generation import generated
from models.llm import LanguageModel
from models.sequences import Sequences
from models.sources import FROZEN, Whitening

SHARED, SPECIFIC = 2, 5
USER, ITEM = 0, 1  # towers
# Sentences to go on with rather than questions: asked, the packaged base model answers with an empty line.
FACTORS = "style, mood, makers and period"
FIRST = 15  # events of a user that are written about, at most (KAR: 15 books, 30 films)
TEXT_TOKENS = 64  # of an answer that are encoded
ENCODED = 64  # answers at a time

Step = Callable[[int, int], None]


def item_prompts(texts: Sequence[str]) -> list[str]:
    """Return the prompt of each item; "" has none and gets none."""
    return [f"{text} is known for its {FACTORS}: it is" if text else "" for text in texts]


def user_prompts(histories: Sequence[Sequence[int]], texts: Sequence[str]) -> list[str]:
    """Return the prompt of each user's history of item rows, oldest first; without any text it is ""."""
    out = []
    for history in histories:
        known = [texts[item] for item in history if texts[item]]
        lines = "\n".join(f"- {text[:60]}" for text in known)
        out.append(f"One person chose:\n{lines}\nIn {FACTORS}, this person likes" if known else "")
    return out


def knowledge_states(llm: LanguageModel, prompts: list[str], folder: Path, step: Step | None = None) -> Tensor:
    """Return the mean states (n, H) of the answers to prompts; zero where there is no prompt or no answer."""
    rows = [row for row, prompt in enumerate(prompts) if prompt]
    answers = generated(llm, [prompts[row] for row in rows], folder, step)
    said = [(row, text) for row, text in zip(rows, answers, strict=True) if text]
    digest = hashlib.sha256(f"{llm.fingerprint}|{TEXT_TOKENS}|{len(prompts)}".encode())
    for row, text in said:
        digest.update(f"{row}|{text}|".encode())
    path = folder / f"{digest.hexdigest()[:24]}.npy"
    if path.is_file():
        return torch.from_numpy(np.load(path, allow_pickle=False))
    out = torch.zeros(len(prompts), llm.hidden_size)
    out[[row for row, _ in said]] = text_states(llm, [text for _, text in said])
    scratch = path.with_suffix(f".{os.getpid()}.npy")
    np.save(scratch, out.numpy(), allow_pickle=False)
    scratch.replace(path)
    return out


def text_states(llm: LanguageModel, texts: Sequence[str]) -> Tensor:
    """Return the mean states (n, H) of texts; zero where one is empty."""
    out = torch.zeros(len(texts), llm.hidden_size)
    prefix = encode_prefix(llm)
    ids = llm.tokenize(list(texts), TEXT_TOKENS)
    order = sorted((at for at in range(len(texts)) if ids[at]), key=lambda at: len(ids[at]))
    for first in range(0, len(order), ENCODED):
        part = order[first : first + ENCODED]
        out[part] = torch.from_numpy(encode(llm, [ids[at] for at in part], prefix)[1])
    return out


def written_about(training: Sequences) -> IntArray:
    """Return per user how many of the first training events are written about, (users,)."""
    return np.minimum((training.lengths() + 1) // 2, FIRST)


class Towers(HybridExperts):
    """The hybrid experts, one tower at a time."""

    def tower(self, states: Tensor, tower: int) -> Tensor:
        """Return (…, outer) of states (…, inner) by one tower."""
        # Two plain matrix products: the gate goes in before the second one, whose sum runs over experts too.
        gate = torch.softmax(states @ self.gate[tower], -1)
        into = torch.cat([self.shared_in, self.own_in[tower]])
        out = torch.cat([self.shared_out, self.own_out[tower]])
        inner = torch.relu(states @ into.permute(1, 0, 2).flatten(1)).unflatten(-1, into.shape[::2])
        return (inner * gate[..., None]).flatten(-2) @ out.flatten(0, 1)


class KnowledgeScorer(Backbone):
    """A backbone whose items carry what the language model wrote about them.

    Args:
        written: (n_items, w) whitened states of items' texts, zero rows where there is none.
        fresh: (n_items,) bool, items no training event shows.
        n_items, dim, layers, heads, max_len, dropout: of the backbone.
    """

    written: Tensor

    def __init__(
        self, written: Tensor, fresh: Tensor | None, n_items: int, dim: int, layers: int, heads: int, max_len: int,
        dropout: float,
    ) -> None:
        super().__init__(n_items, dim, layers, heads, max_len, dropout, fresh)
        self.register_buffer("written", written, persistent=False)
        self.experts = Towers(2, written.shape[1], dim, SHARED, SPECIFIC)
        with torch.no_grad():  # vectors of items start at 0.02 per component: knowledge as large, not 50 times
            self.experts.shared_out.mul_(0.02)
            self.experts.own_out.mul_(0.02)

    def item_side(self, dropped: Tensor | None = None) -> ItemSide:
        """Return vectors and biases of the catalogue as the backbone does, with items' knowledge."""
        vectors, bias = super().item_side(dropped)
        there = (self.written != 0).any(1, keepdim=True)
        return vectors + self.experts.tower(self.written, ITEM) * there, bias


class WrittenSource(Source):
    """What was written about each user, through the user tower.

    Args:
        states: (users, H) of the texts, zero rows where there is none.
        written: (users,) events of each that the text is about, the user's first.
    """

    bank: Tensor

    def __init__(self, states: Tensor, written: IntArray) -> None:
        super().__init__()
        self.items, self.snapshots = 1, FROZEN
        self.whiten = Whitening(states)
        self.register_buffer("bank", self._whitened(states), persistent=False)
        self._written = np.where((states != 0).any(1).numpy(), written, np.iinfo(np.int64).max)
        self.experts: Towers | None = None

    def attach(self, backbone: Backbone) -> None:
        """Share the experts of the scorer's items."""
        if isinstance(backbone, KnowledgeScorer):
            self.experts = backbone.experts

    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, 1, d); zero where a text is about events not before the moment."""
        known = torch.from_numpy(moments.length >= self._written[moments.user]).to(self.bank.device)
        return self._vectors(self.bank[torch.from_numpy(moments.user).to(self.bank.device)], known)

    def about(self, states: Tensor) -> Tensor:
        """Return knowledge (B, 1, d) of texts written just now, by their states (B, H); zero rows where there is none.
        """
        return self._vectors(self._whitened(states), (states != 0).any(1))

    def _whitened(self, states: Tensor) -> Tensor:
        return self.whiten(states) * (states != 0).any(1, keepdim=True)

    def _vectors(self, user: Tensor, known: Tensor) -> Tensor:
        if self.experts is None:
            raise RuntimeError("WrittenSource needs attach(backbone) first")
        return (self.experts.tower(user, USER) * known[:, None])[:, None] * self.experts.shape[1] ** 0.5
