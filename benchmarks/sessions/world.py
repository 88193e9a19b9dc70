"""A data set with recorded texts, and a fitted reference: what every part of the benchmark measures on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from benchmarks.sessions.behaviour import GAINS, TEMPERATURES, Behaviour, Prepared
from benchmarks.sessions.choose import Targets, figures
from benchmarks.sessions.ideas import Material
from benchmarks.sessions.moments import Kind, SessionMoments, times_of
from models.data.dataset import Dataset, FloatArray, IntArray
from models.evidence.item_knowledge import Encodings, ItemKnowledge
from models.evidence.user_text import ItemTexts
from models.measuring.protocols import Split
from models.scorers.snapshots import before

HISTORY = 12  # newest items that are compared, as many as the language model read
HALF_LIFE = 3.0  # of their weight, in items


@dataclass(frozen=True)
class World:
    """Events, moments and the reference.

    Args:
        knowledge: of the catalogue.
        encoded: sentence encodings of the moments' texts, by kind.
    """

    dataset: Dataset
    split: Split
    moments: dict[Kind, SessionMoments]
    behaviour: Behaviour
    knowledge: ItemKnowledge
    encoded: dict[Kind, Encodings | None]

    @property
    def times(self) -> FloatArray:
        """Times of the rows of the sequences, seconds."""
        return times_of(self.dataset, self.split.test)

    def calibrated(self) -> Self:
        """Return the world with the closed form's weight and the temperature chosen on `training` moments."""
        moments = self.moments["training"]
        prepared, targets = self.prepared("training"), self.targets("training")
        worth = {gain: figures(replace(self.behaviour, gain=gain).logits(prepared), targets) for gain in GAINS}
        gain = max(worth, key=lambda gain: float(worth[gain].whole.mean()))
        logits = replace(self.behaviour, gain=gain).logits(prepared)
        return replace(self, behaviour=replace(
            self.behaviour, gain=gain, temperature=best_temperature(logits, targets))) if len(moments) else self

    def prepared(self, kind: Kind) -> Prepared:
        """Return what scoring the moments of a kind takes."""
        return self.behaviour.prepare(self.moments[kind].row, early=kind == "training")

    def targets(self, kind: Kind) -> Targets:
        """Return what was chosen at the moments of a kind."""
        return targets_of(self.moments[kind], self.split.test.item)

    def material(self, kind: Kind, prepared: Prepared | None = None, text: IntArray | None = None,
                 of: Kind | None = None) -> Material:
        """Return what the ideas work with.

        Args:
            kind: of the moments to predict.
            prepared: of these moments; None = computed.
            text: (m,) indices of the moments whose texts to use; None = their own.
            of: kind of the moments that `text` refers to; None = the same kind.
        """
        of = of or kind
        moments = self.moments[kind]
        base = self.behaviour.logits(prepared or self.prepared(kind))
        at = np.arange(len(moments)) if text is None else text
        written = [self.moments[of].text[index] for index in at.tolist()]
        encoded = self.encoded[of]
        return self.matched(base, written, None if encoded is None else encoded[at], moments.row)

    @cached_property
    def titles(self) -> ItemTexts:
        """The words of the catalogue's texts."""
        return ItemTexts.of(self.knowledge.texts)

    @cached_property
    def keywords(self) -> ItemTexts:
        """The words of what a language model wrote of the items; without such texts, of the catalogue's texts."""
        return self.titles if self.knowledge.written is None else ItemTexts.of(self.knowledge.written)

    def matched(
        self, base: Tensor, texts: list[str], encoded: Encodings | None, rows: IntArray, *, history: bool = True,
    ) -> Material:
        """Return material from logits (m, n), texts (m,) with their encodings (m, d), and the rows of the moments.

        Args:
            history: False = leave `Material.history` at 0.
        """
        words = self.titles.similarity(texts)
        written = words if self.knowledge.written is None else self.keywords.similarity(texts)
        cosine = torch.zeros_like(words)
        if encoded is not None and self.knowledge.encoded is not None:
            cosine = torch.from_numpy(encoded) @ torch.from_numpy(self.knowledge.encoded).T
        sequences = self.split.test
        low = sequences.offsets[sequences.user(rows)]
        read = self._history(rows) if history else torch.zeros(()).expand(base.shape)
        return Material(base, words, cosine, written, read, torch.from_numpy(rows - low))

    def _history(self, rows: IntArray) -> Tensor:
        """Return how well what was written of the items of users' histories before `rows` (m,) matches each item."""
        newest = before(self.split.test, rows, HISTORY)
        weight = np.where(newest >= 0, 2.0 ** (-np.arange(HISTORY)[::-1] / HALF_LIFE), 0.0)
        weight /= weight.sum(1, keepdims=True)
        out = torch.empty(len(rows), len(self.dataset.items))
        for part in torch.arange(len(rows)).split(256):
            some, share = torch.from_numpy(np.maximum(newest[part], 0)), torch.tensor(weight[part], dtype=torch.float32)
            shares = torch.zeros(len(part), out.shape[1]).scatter_add_(1, some, share)
            read = torch.sparse.mm(self.keywords.words.t(), shares.T.contiguous())
            out[part] = torch.sparse.mm(self.keywords.words, read).T
        return out


def targets_of(moments: SessionMoments, item: IntArray) -> Targets:
    """Return the items of the sessions' first events; `item`: of all rows of the sequences."""
    size = moments.stop - moments.row
    moment = np.repeat(np.arange(len(moments)), size)
    offset = np.arange(len(moment)) - np.repeat(np.cumsum(size) - size, size)
    return Targets(moment, item[moments.row[moment] + offset], len(moments))


def best_temperature(logits: Tensor, targets: Targets) -> float:
    """Return the candidate with the highest likelihood of what was chosen."""
    return max(TEMPERATURES, key=lambda value: float(figures(logits * value, targets).logp.mean()))
