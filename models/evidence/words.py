"""Similarity of item texts. Words: makers, product lines and genres, which a language model's mean state blurs.

Shared words are weighted by tf-idf, because rare words are more informative. Vectors have unit length, so all texts
count the same. Words are runs of Unicode word characters; in scripts without spaces only whole phrases can match.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 4.0  # standard deviations, as for states of a language model (`models.compute.pca`)
COMMON = 0.2  # share of texts: a more frequent word separates nothing, and its pairs would cost most
_WORD = re.compile(r"\w+")


def weigh_words(texts: Sequence[str]) -> Tensor:
    """Return tf-idf weights of the words in texts, sparse (n, w), rows of unit length; see `Vocabulary`."""
    return Vocabulary.of(texts).weigh(texts)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that count in a catalogue's texts, and how much.

    Words that occur in one text only or in more than a fifth of the texts are dropped.

    Args:
        column: word → column.
        weight: (w,) log(n / number of texts with the word).
    """

    column: dict[str, int]
    weight: list[float]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Vocabulary:
        """Count the words of n texts."""
        counts = Counter(word for text in texts for word in set(_WORD.findall(text.casefold())))
        kept = sorted(word for word, count in counts.items() if 2 <= count <= max(2, COMMON * len(texts)))
        return cls({word: at for at, word in enumerate(kept)}, [math.log(len(texts) / counts[word]) for word in kept])

    def weigh(self, texts: Sequence[str]) -> Tensor:
        """Return tf-idf weights of the words in texts, sparse (m, w), rows of unit length, or 0 without such words."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            found = sorted({self.column[word] for word in set(_WORD.findall(text.casefold())) if word in self.column})
            length = math.hypot(*(self.weight[at] for at in found))
            rows += [row] * len(found)
            columns += found
            values += [self.weight[at] / length if length else 0.0 for at in found]
        place = torch.tensor([rows, columns], dtype=torch.int64).reshape(2, -1)
        shape = (len(texts), len(self.column))
        return torch.sparse_coo_tensor(place, torch.tensor(values), shape, check_invariants=False).coalesce()


def padded_words(vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the words of texts as columns (n, L) int64, −1 = none, and their weights (n, L), rows of unit length."""
    weights = vocabulary.weigh(texts)
    (row, column), value = weights.indices(), weights.values()
    many = torch.bincount(row, minlength=len(texts))
    place = torch.arange(len(row)) - (many.cumsum(0) - many).repeat_interleave(many)
    width = int(many.max()) if len(texts) else 0
    columns, values = torch.full((len(texts), width), -1), torch.zeros(len(texts), width)
    columns[row, place], values[row, place] = column, value
    return columns, values


def add_similarity(gram: Tensor, weights: Tensor, share: float) -> None:
    """Add `share` times the cosine similarity of each pair of texts to gram (n, n), in place.

    Args:
        weights: (n, w) sparse, from `weigh_words`.
    """
    for part in torch.arange(len(gram)).split(1024):  # all at once would need another (n, n)
        block = weights.index_select(0, part).to_dense().T.contiguous()
        gram[:, part] += share * torch.sparse.mm(weights, block)


def add_encodings(gram: Tensor, encoded: Tensor, share: float) -> None:
    """Add `share` times the similarity of each pair of sentence encodings to gram (n, n), in place.

    The similarity is the cosine cubed, negatives cut to 0. Any two titles of one shop have a cosine of some .2 to .4;
    the cube leaves .03 of that and .5 of a cosine of .8.

    Args:
        encoded: (n, d) float32, rows of unit length or zero.
    """
    for part in torch.arange(len(gram)).split(1024):  # all at once would need another (n, n)
        gram[:, part] += (encoded @ encoded[part].T).clamp_(min=0.0).pow_(3).mul_(share)


def words_condensed(texts: Sequence[str], width: int = 128) -> Tensor:
    """Return the leading singular directions of the words of texts, (n, ≤ width) float32 of unit variance, within ±4.

    They are what a scorer reads of texts without a language model. Rows without words are 0.
    """
    weights = weigh_words(texts)
    torch.manual_seed(0)
    q = min(width, *weights.shape)
    if not q:
        return torch.zeros(len(texts), width)
    u, _, _ = torch.svd_lowrank(weights, q, niter=4)
    return (u / u.std(0).clamp(min=1e-9)).clamp(-LIMIT, LIMIT)
