"""Rows of items that came after the fit, for a ranking model: scorers, reference and closed form.

The transformers score such an item as they score the fit's items without events: by the vector and bias that dropped
items trained in training. The one that reads texts adds the text features of the most similar items of the fit, whose
mean stands for the item's own, which would need the language model. The closed form gets it as `models.evidence.later`
says; without a text an item has neighbours only through its users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.evidence.ease import Ease
from models.evidence.item_knowledge import ItemKnowledge
from models.evidence.later import Described, LaterItems, Storage
from models.evidence.reference import Reference
from models.scorers.backbone import Backbone, ItemSide
from models.scorers.fusion import FusedScorer


@dataclass(frozen=True, slots=True)
class Sides:
    """What a ranking model scores its items with.

    Args:
        reference, fused: vectors and biases of the transformers.
        behaviour, affinity: the reference's closed form, and that with item knowledge.
    """

    reference: ItemSide
    fused: ItemSide
    behaviour: Ease
    affinity: Ease


class LaterRows:
    """The rows of one ranking model.

    Args:
        reference, fused: the scorers.
        side, reference_side: their vectors and biases of the fit's items.
        affinity: the closed form with item knowledge.
        known: of the fit's items.
    """

    def __init__(
        self, reference: Reference, fused: FusedScorer, side: ItemSide, reference_side: ItemSide, affinity: Ease,
        known: ItemKnowledge,
    ) -> None:
        self._fitted = len(side[1])
        self._fused = fused
        self._behaviour = LaterItems(reference.affinity, ItemKnowledge([]))
        self._affinity = LaterItems(affinity, known)
        self._sides = [[Storage(part) for part in parts] for parts in (reference_side, side)]
        self._new = [_new(reference.backbone, reference_side), _new(fused, side)]

    @property
    def encodes(self) -> bool:
        """Whether an item needs the encoding of its text."""
        return self._affinity.active and self._affinity.similarity.encodes

    def grow(self, size: int) -> Sides:
        """Return the rows of `size` items."""
        for storages, new in zip(self._sides, self._new, strict=True):
            for storage, value in zip(storages, new, strict=True):
                begin = len(storage.rows)
                storage.grow(size)[begin:] = value
        return self._found(self._behaviour.grow(size), self._affinity.grow(size))

    @torch.no_grad()
    def put(self, rows: Sequence[int], new: Described, similar: Sequence[Mapping[int, float]]) -> Sides:
        """Return the rows with what is known of new or changed items.

        Args:
            rows: m item rows. Those of the fit that have users keep their rows.
            new: texts and encodings.
            similar: (m,) the fit's items with the most similar texts, and how similar; {} = none.
        """
        affinity = self._affinity.put(rows, new)
        for row, near in zip(rows, similar, strict=True):
            inside = {item: weight for item, weight in near.items() if 0 <= item < self._fitted and weight > 0}
            if row >= self._fitted and inside:
                self._features(row, torch.tensor(list(inside)), torch.tensor(list(inside.values())))
        return self._found(self._behaviour.grow(len(affinity.neighbours)), affinity)

    def _features(self, row: int, near: Tensor, weights: Tensor) -> None:
        """Give an item the text features of similar ones; a scorer without texts their vectors."""
        weights = weights / weights.sum()
        vectors, biases = (storage.rows for storage in self._sides[1])
        if _reads_texts(self._fused):
            text = weights @ self._fused.text[near]
            vectors[row] = self._new[1][0] + self._fused.text_vector(text)
            biases[row] = self._new[1][1] + self._fused.text_bias(text)[0]
        elif not _knows_new(self._fused):
            vectors[row], biases[row] = weights @ vectors[near], weights @ biases[near]

    def _found(self, behaviour: Ease, affinity: Ease) -> Sides:
        reference, fused = ((vectors.rows, biases.rows) for vectors, biases in self._sides)
        return Sides(reference, fused, behaviour, affinity)


def _new(backbone: Backbone, side: ItemSide) -> ItemSide:
    """Return vector (d,) and bias () of an item of which nothing is known."""
    if _knows_new(backbone):
        return backbone.fresh_vector.detach(), (backbone.fresh_bias + backbone.fresh_shift).detach()
    # A scorer that was put into another form for serving has no such vector any more.
    return side[0].mean(0), side[1].mean()


def _knows_new(backbone: Backbone) -> bool:
    return bool((backbone.fresh_vector != 0).any())


def _reads_texts(scorer: FusedScorer) -> bool:
    return bool((scorer.text != 0).any())
