"""Items that come after the fit, in the closed form.

A new item is a further row and column of the closed form's matrix A: its similarities g to the other items and, once
it has users, its pairs with them. Its weights from the others, the new column of B, are y = A⁻¹ g: what a new fit would
give it. A⁻¹ is as large as the square of the catalogue and not kept, so the system is solved for the `NEAR` most
similar items alone, with A's diagonal (their users) and their similarities: some 10 ms per item. On Amazon Beauty's 325
unseen items, put into a table that was fitted without them, that has an NDCG@10 of .0413 where a new fit has .0399, and
.0313 on other items where a new fit has .0304 (the closed form alone, words and encoder at .6). Reading A⁻¹ g off the
table of 128 neighbours instead is cheaper and too generous to new items: .0455 and .0276.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from models.evidence.ease import RIDGE, Ease
from models.evidence.item_knowledge import Encodings, ItemKnowledge, Parts
from models.evidence.words import Vocabulary, padded_words

NEAR = 384  # items that a new one is solved with
ROOM = 64  # rows that storage grows by, at least; an eighth of it where that is more


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of m new items.

    Args:
        texts: (m,) "" = none.
        encoded: (m, d) float32 sentence encodings, rows of unit length or zero; None = no encoder.
    """

    texts: Sequence[str]
    encoded: Encodings | None = None


class Storage:
    """A tensor (n, …) that takes more rows; the first ones are copied when it first does."""

    def __init__(self, held: Tensor) -> None:
        self._held, self._size = held, len(held)

    @property
    def rows(self) -> Tensor:
        """The rows so far, a view."""
        return self._held[: self._size]

    def grow(self, size: int, fill: float = 0.0) -> Tensor:
        """Return the rows after making them `size`."""
        if size > len(self._held):
            room = torch.full((max(size, self._size + max(ROOM, self._size // 8)), *self._held.shape[1:]), fill).to(
                self._held.dtype)
            room[: self._size] = self.rows
            self._held = room
        self._size = max(self._size, size)
        return self.rows


class TextSimilarity:
    """Similarities of item texts as the closed form weighs them. Items may be added and changed.

    Words count as in the fit: one that came up later says nothing until the next fit.

    Args:
        known: of the fit's items.
        parts: their weights.
    """

    def __init__(self, known: ItemKnowledge, parts: Parts) -> None:
        self.on = {name: weight for name, weight in asdict(parts).items() if weight > 0 and known.has(name)}
        self._vocabulary: dict[str, Vocabulary] = {}
        self._words: dict[str, tuple[Storage, Storage]] = {}
        for name, texts in (("words", known.texts), ("written", known.joined())):
            if name in self.on:
                self._vocabulary[name] = Vocabulary.of(texts)
                columns, values = padded_words(self._vocabulary[name], texts)
                self._words[name] = Storage(columns.int()), Storage(values)
        encoded = known.encoded if "encoder" in self.on else None
        self._encoded = None if encoded is None else Storage(torch.from_numpy(np.asarray(encoded, np.float16)))

    @property
    def encodes(self) -> bool:
        """Whether an item needs its encoding."""
        return self._encoded is not None

    def put(self, rows: Sequence[int], new: Described) -> None:
        """Set what items say, those at the end of the catalogue or others."""
        at = torch.tensor(rows)
        for name, (columns, values) in self._words.items():
            found, weighed = padded_words(self._vocabulary[name], new.texts)
            width = columns.rows.shape[1]
            # A text with more words than any of the fit's keeps its weightiest.
            best = weighed.topk(min(width, weighed.shape[1]), 1)
            for held, part, fill in ((columns, found.gather(1, best.indices), -1), (values, best.values, 0)):
                grown = held.grow(max(rows) + 1, fill)
                grown[at] = fill
                grown[at, : part.shape[1]] = part.to(grown.dtype)
        if self._encoded is not None:
            grown = self._encoded.grow(max(rows) + 1)
            grown[at] = torch.from_numpy(np.asarray(new.encoded, np.float16))

    def of(self, row: int) -> Tensor:
        """Return the similarities (n,) of all items to one, itself included."""
        out = torch.zeros(0)
        for name, (columns, values) in self._words.items():
            dense = torch.zeros(len(self._vocabulary[name].weight) + 1)
            dense[columns.rows[row].long()] = values.rows[row]
            dense[-1] = 0.0
            part = self.on[name] * (values.rows * dense[columns.rows.long()]).sum(1)
            out = out + part if len(out) else part
        if self._encoded is not None:
            rows, asked = self._encoded.rows, self._encoded.rows[row].float()
            close = torch.cat([part.float() @ asked for part in rows.split(4096)])
            part = self.on["encoder"] * close.clamp_(min=0.0).pow_(3)
            out = out + part if len(out) else part
        return out

    def among(self, rows: Tensor) -> Tensor:
        """Return the similarities (m, m) of items to each other."""
        out = torch.zeros(len(rows), len(rows))
        for name, (columns, values) in self._words.items():
            used, place = torch.unique(columns.rows[rows], return_inverse=True)
            dense = torch.zeros(len(rows), len(used)).scatter_add_(1, place, values.rows[rows])
            out += self.on[name] * (dense @ dense.T)
        if self._encoded is not None:
            encoded = self._encoded.rows[rows].float()
            out += self.on["encoder"] * (encoded @ encoded.T).clamp_(min=0.0).pow_(3)
        return out


class LaterItems:
    """A closed form that takes items after its fit.

    Args:
        ease: of n items, with diagonal and users.
        known: of its items.
    """

    def __init__(self, ease: Ease, known: ItemKnowledge) -> None:
        self.similarity = TextSimilarity(known, ease.parts)
        self._ease = ease
        self._fitted = len(ease.neighbours)
        zeros = torch.zeros(self._fitted)
        self._neighbours, self._weights = Storage(ease.neighbours), Storage(ease.weights)
        self._diagonal = Storage(zeros if ease.diagonal is None else ease.diagonal)
        self._users = Storage(zeros if ease.users is None else ease.users)

    @property
    def active(self) -> bool:
        """Whether texts say anything in this closed form; without that, later items have no neighbours."""
        return bool(self.similarity.on) and self._ease.diagonal is not None and self._ease.neighbours.shape[1] > 0

    def grow(self, size: int) -> Ease:
        """Return the table of `size` items; new ones have no neighbours yet."""
        return replace(self._ease, neighbours=self._neighbours.grow(size), weights=self._weights.grow(size),
                       diagonal=self._diagonal.grow(size), users=self._users.grow(size))

    def put(
        self, rows: Sequence[int], new: Described, pairs: Sequence[Mapping[int, float]] = (),
        users: Sequence[float] = (),
    ) -> Ease:
        """Return the table with new or changed items. Items of the fit that have users keep what the fit says.

        Args:
            rows: m item rows; items before them may be new as well.
            new: what is known of them.
            pairs, users: (m,) their pairs with other items, and their users, as multiples of the mean; () = none.
        """
        ease = self.grow(max([self._fitted - 1, *rows]) + 1)
        at = [n for n, row in enumerate(rows) if row >= self._fitted or ease.users[row] == 0]  # type: ignore[index]
        rows = [rows[n] for n in at]
        if not rows or not self.active:
            return ease
        self.similarity.put(rows, Described(
            [new.texts[n] for n in at], None if new.encoded is None else np.asarray(new.encoded)[at]))
        for n, row in zip(at, rows, strict=True):
            self._users.rows[row] = users[n] if users else 0.0
        columns, out = torch.zeros(len(ease.neighbours), len(rows)), torch.zeros(len(rows), len(ease.neighbours))
        for place, (n, row) in enumerate(zip(at, rows, strict=True)):
            self._solve(row, pairs[n] if pairs else {}, columns[:, place], out[place])
        self._write(rows, columns, out)
        return ease

    def _solve(self, row: int, pairs: Mapping[int, float], column: Tensor, out: Tensor) -> None:
        """Fill an item's column (n,) and row (n,) of B."""
        close = self.similarity.of(row)
        similar = torch.zeros(len(column))
        similar[: len(close)] = close
        own = float(similar[row]) + RIDGE + float(self._users.rows[row])
        for other, count in pairs.items():
            similar[other] += count
        diagonal = self._diagonal.rows
        similar[row] = 0.0
        similar[diagonal == 0] = 0.0  # not in the closed form, or not solved yet
        near = similar.topk(min(NEAR, len(similar))).indices
        near = near[similar[near] > 0]
        if not len(near):
            diagonal[row] = 1.0 / own
            return
        gram = self.similarity.among(near)
        gram.diagonal().add_(self._users.rows[near] + RIDGE)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:  # cutting negative similarities can leave a slightly negative eigenvalue
            gram.diagonal().add_(RIDGE)
            factor, failed = torch.linalg.cholesky_ex(gram)
        solved = torch.cholesky_solve(similar[near, None], factor).squeeze(1)
        left = max(own - float(similar[near] @ solved), RIDGE / 2)
        column[near] = solved
        out[near] = solved / left / (diagonal[near] + solved.square() / left)
        diagonal[row] = 1.0 / left

    def _write(self, rows: Sequence[int], columns: Tensor, out: Tensor) -> None:
        """Put columns (n, m) and rows (m, n) of items into the table, in place."""
        neighbours, weights, at = self._neighbours.rows, self._weights.rows, torch.tensor(rows)
        k = neighbours.shape[1]
        again = [row for row in rows if bool((weights[row] != 0).any())]
        if again:
            weights[torch.isin(neighbours, torch.tensor(again, dtype=neighbours.dtype))] = 0.0
        changed = torch.nonzero(columns.abs().amax(1) > weights.abs().amin(1)).flatten()
        joined = torch.cat([weights[changed].float(), columns[changed]], 1)
        items = torch.cat([neighbours[changed], at.to(neighbours.dtype).expand(len(changed), -1)], 1)
        best = joined.abs().topk(k, 1).indices
        neighbours[changed], weights[changed] = items.gather(1, best), joined.gather(1, best).to(weights.dtype)
        best = out.abs().topk(min(k, out.shape[1]), 1).indices
        # What names an item in the rows of others of this batch stands in their columns.
        mine = torch.cat([out.gather(1, best), columns[at]], 1)
        names = torch.cat([best, at.expand(len(rows), -1)], 1)
        kept = mine.abs().topk(min(k, mine.shape[1]), 1).indices
        neighbours[at], weights[at] = 0, 0.0
        width = kept.shape[1]
        neighbours[at, :width] = names.gather(1, kept).to(neighbours.dtype)
        weights[at, :width] = mine.gather(1, kept).to(weights.dtype)
