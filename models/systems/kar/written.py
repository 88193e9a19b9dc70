"""KAR: a language model's texts about items and users, encoded, through hybrid experts.

After arXiv 2306.10933 and its code: factorised prompts ask for the factors behind a choice. Answers are encoded as mean
states, and a hybrid-expert adaptor (2 shared experts, 5 per tower, a gate per tower) maps them to vectors. A user's
text is written in advance and only used for events after those that it is about: in training a text about the first
half of the training events, in a test the last one that could have been written before (after 4, 8, 16, … events).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.compute.pca import Whitening
from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.knowledge.sources import FROZEN, Moments, Source
from models.language.encoding import PREFIX
from models.language.generation import generated, manner, token_rows
from models.language.llm import LanguageModel
from models.language.writer import Writer
from models.scorers.backbone import Backbone, ItemSide
from models.systems.kar.towers import ITEM, SHARED, SPECIFIC, USER, Towers
from schemas.files import written_whole

# Few-shot examples. Without any, the packaged base model writes about most films that they have "been in the news for
# a long time"; with a list of factors it copies the example's. The examples are read once for all items, so they cost
# next to nothing. They come from several domains, because the catalogue's domain is unknown.
ABOUT_ITEMS = """Things that people choose, and what each is like: kind, style, mood, and whom it suits.

The Great Escape. Action, War, 1963
It is a prison-camp adventure with a large cast, tense yet playful, for those who enjoy clever plans and old war films.

L'Occitane Shea Butter Hand Cream, 1 oz. Skin Care, Hands
It is a rich cream that sinks in slowly, with a soft and nutty smell, for dry hands in winter and as a small gift.

Trail Runner 5 Shoes, Women's. Salomon, Sports, Running
It is a light shoe with a hard sole and deep grip, sporty and bright, for runners who leave the road.

The Secret Garden. Novel, Children, 1911
It is a slow country-house story about grief and growing, quiet and hopeful, for young readers and nostalgic adults.

"""
# Numbers of a user's events to write about (KAR: 15 books, 30 films). Two is not among them: on Beauty, where half of
# the users have at most four events, it would add 16,000 texts about two products each, which the item texts cover.
STEPS = (4, 8, 16)
TEXT_TOKENS = 64  # tokens of an answer to encode
ENCODED = 256  # answers per batch

Step = Callable[[int, int], None]


def item_prompts(texts: Sequence[str]) -> list[str]:
    """Return a prompt for each item text; an empty text gets an empty prompt."""
    return [f"{ABOUT_ITEMS}{text[:160]}\nIt is" if text else "" for text in texts]


def user_prompts(histories: Sequence[Sequence[int]], texts: Sequence[str]) -> list[str]:
    """Return a prompt for the last 16 items of each user's history of item rows, oldest first; "" if none has a text.

    The prompts have no examples: with examples Gemma 3 270M gives 22 different answers to 64 users of Beauty, without
    examples 60.
    """
    out = []
    for history in histories:
        known = [texts[item][:60].rstrip(" .,") for item in history if texts[item]][-STEPS[-1] :]
        out.append(f"One person's favourites are {'; '.join(known)}.\nSo this is a person who likes" if known else "")
    return out


def knowledge_states(llm: LanguageModel, prompts: list[str], folder: Path, step: Step | None = None) -> Tensor:
    """Return the mean states (n, H) of the answers to prompts; zero if prompt or answer is empty."""
    rows = [row for row, prompt in enumerate(prompts) if prompt]
    answers = generated(llm, [prompts[row] for row in rows], folder, step)
    said = [(row, text) for row, text in zip(rows, answers, strict=True) if text]
    digest = hashlib.sha256(f"{manner(llm, TEXT_TOKENS)}|{PREFIX}|{len(prompts)}".encode())
    for row, text in said:
        digest.update(f"{row}|{text}|".encode())
    path = folder / f"{digest.hexdigest()[:24]}.npy"
    if path.is_file():
        return torch.from_numpy(np.load(path, allow_pickle=False))
    out = torch.zeros(len(prompts), llm.hidden_size)
    if said:
        means = encode_texts(Writer(llm), [text for _, text in said])
        out[torch.tensor([row for row, _ in said])] = means
    with written_whole(path) as scratch, scratch.open("wb") as file:
        np.save(file, out.numpy(), allow_pickle=False)
    return out


@torch.no_grad()
def encode_texts(writer: Writer, texts: list[str]) -> Tensor:
    """Return the mean last states (n, H) of texts, each read separately after the prefix of item texts."""
    ids = writer.llm.tokenize(texts, TEXT_TOKENS)
    begin = token_rows(writer.llm, [PREFIX])[0]
    out = torch.zeros(len(texts), writer.llm.hidden_size)
    order = sorted((at for at in range(len(texts)) if ids[at]), key=lambda at: len(ids[at]))
    for first in range(0, len(order), ENCODED):
        part = order[first : first + ENCODED]
        _, hidden = writer.read([ids[at] for at in part], begin)
        lengths = torch.tensor([len(ids[at]) for at in part], device=hidden.device)
        present = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        out[torch.tensor(part)] = ((hidden.float() * present[..., None]).sum(1) / lengths[:, None]).cpu()
    return out


def written_about(training: Sequences) -> IntArray:
    """Return how many of each user's first training events to write about, (users,).

    This is the largest of `STEPS` within the first half; 0 = no text, and knowledge is zero. The steps double, because
    a tenth event is not worth rewriting a text about nine. Most prompts are then the same under every protocol: on
    Beauty 9,176 texts serve both protocols, while prompts of every length up to 16 would need 36,800.
    """
    half = (training.lengths() + 1) // 2
    steps = np.array([0, *STEPS])
    return steps[np.searchsorted(steps, half, side="right") - 1]


def newest_step(length: IntArray) -> IntArray:
    """Return the number of first events that the last text before each moment is about: 4, 8, 16, 32, …; 0 = no text.

    Args:
        length: (m,) events before the moment.
    """
    doubled = np.floor(np.log2(np.maximum(length, 1) / STEPS[0])).astype(np.int64)
    return np.where(length >= STEPS[0], STEPS[0] * 2 ** np.maximum(doubled, 0), 0)


class KnowledgeScorer(Backbone):
    """A backbone whose item vectors include the language model's texts about the items.

    Args:
        written: (n_items, w) whitened states of the texts, zero rows for items without text.
        fresh: (n_items,) bool, items without training events.
        n_items, dim, layers, heads, max_len, dropout: see `Backbone`.
    """

    written: Tensor

    def __init__(
        self, written: Tensor, fresh: Tensor | None, n_items: int, dim: int, layers: int, heads: int, max_len: int,
        dropout: float,
    ) -> None:
        super().__init__(n_items, dim, layers, heads, max_len, dropout, fresh)
        self.register_buffer("written", written, persistent=False)
        self.experts = Towers(2, written.shape[1], dim, SHARED, SPECIFIC)
        with torch.no_grad():  # item vectors start at 0.02 per component; knowledge would be 50 times larger
            self.experts.shared_out.mul_(0.02)
            self.experts.own_out.mul_(0.02)

    def item_side(self, dropped: Tensor | None = None) -> ItemSide:
        """Return vectors and biases of the catalogue, including item knowledge; see `Backbone.item_side`."""
        vectors, bias = super().item_side(dropped)
        there = (self.written != 0).any(1, keepdim=True)
        return vectors + self.experts.whole_catalogue(self.written, ITEM) * there, bias


class WrittenSource(Source):
    """KAR's source: the newest text about each user, through the user tower.

    Args:
        states: (n, H) states of the texts, zero rows where there is none.
        written: (n,) number of the user's first events that each text is about.
        user: (n,) row of each text's user; None = text r is about user r.
        trained: number of leading texts that training uses: only these shape the whitening; None = all.
    """

    bank: Tensor

    def __init__(
        self, states: Tensor, written: IntArray, user: IntArray | None = None, trained: int | None = None,
    ) -> None:
        super().__init__()
        self.items, self.snapshots = 1, FROZEN
        self.whiten = Whitening(states[:trained])
        there = np.flatnonzero((states != 0).any(1).numpy())
        owner = (np.arange(len(states)) if user is None else user)[there]
        order = np.lexsort((written[there], owner))
        self.register_buffer("bank", self._whitened(states[there[order]]), persistent=False)
        # Texts in order of user and events: a moment's text is the last one at or below its own place in that order.
        self._owner, self._place = owner[order], _place(owner[order], written[there][order])
        self.experts: Towers | None = None

    def attach(self, backbone: Backbone) -> None:
        """Share the experts of the scorer's items."""
        if isinstance(backbone, KnowledgeScorer):
            self.experts = backbone.experts

    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, 1, d); zero if the text covers events after the moment."""
        row = np.searchsorted(self._place, _place(moments.user, moments.length), "right") - 1
        known = (row >= 0) & (self._owner[row] == moments.user) if len(self._owner) else np.zeros(len(row), dtype=bool)
        states = torch.zeros(len(row), self.whiten.width, device=self.bank.device)
        states[torch.from_numpy(known)] = self.bank[torch.from_numpy(row[known]).to(self.bank.device)]
        return self._vectors(states, torch.from_numpy(known).to(self.bank.device))

    def about(self, states: Tensor) -> Tensor:
        """Return knowledge (B, 1, d) for new texts, given their states (B, H); zero rows = no text."""
        return self._vectors(self._whitened(states), (states != 0).any(1))

    def _whitened(self, states: Tensor) -> Tensor:
        return self.whiten(states) * (states != 0).any(1, keepdim=True)

    def _vectors(self, user: Tensor, known: Tensor) -> Tensor:
        if self.experts is None:
            raise RuntimeError("WrittenSource needs attach(backbone) first")
        return (self.experts.tower(user, USER) * known[:, None])[:, None] * self.experts.shape[1] ** 0.5


def _place(user: IntArray, events: IntArray) -> IntArray:
    """Return numbers (n,) that order texts and moments by user and then by the user's events."""
    return user * 2**32 + events
