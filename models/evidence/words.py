"""Similarity of item texts. Words: makers, product lines and genres, which a language model's mean state blurs.

Shared words are weighted by tf-idf, because rare words are more informative. Vectors have unit length, so all texts
count the same. Words are runs of Unicode word characters; in scripts without spaces only whole phrases can match.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

COMMON = 0.2  # share of texts: a more frequent word separates nothing, and its pairs would cost most
_WORD = re.compile(r"\w+")


def weigh_words(texts: Sequence[str]) -> Tensor:
    """Return tf-idf weights of the words in texts, sparse (n, w), rows of unit length.

    Words that occur in one text only or in more than a fifth of the texts are dropped. Rows without remaining words
    are 0.
    """
    words = [sorted(set(_WORD.findall(text.casefold()))) for text in texts]
    counts = Counter(word for text in words for word in text)
    column = {word: at for at, word in enumerate(
        word for word, count in counts.items() if 2 <= count <= max(2, COMMON * len(texts)))}
    rows, columns, values = [], [], []
    for row, text in enumerate(words):
        kept = [word for word in text if word in column]
        weights = [math.log(len(texts) / counts[word]) for word in kept]
        length = math.hypot(*weights)
        rows += [row] * len(kept)
        columns += [column[word] for word in kept]
        values += [weight / length if length else 0.0 for weight in weights]
    place = torch.tensor([rows, columns], dtype=torch.int64).reshape(2, -1)
    shape = (len(texts), len(column))
    return torch.sparse_coo_tensor(place, torch.tensor(values), shape, check_invariants=False).coalesce()


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
