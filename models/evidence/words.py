"""The words that items' texts share: makers, product lines, genres, which a language model's mean state blurs.

A word that two titles share says most where few titles have it, hence tf-idf; every text counts the same, hence unit
length. Words are what Unicode calls so; scripts without spaces share whole phrases only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

COMMON = 0.2  # share of texts: a word of more of them tells nothing apart, and its pairs would cost most
_WORD = re.compile(r"\w+")


def weigh_words(texts: Sequence[str]) -> Tensor:
    """Return the tf-idf weights of texts' words, sparse (n, w); rows have unit length, or are 0 without shared words.

    Words of a single text, and those of more than a fifth of them, are left out.
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
    """Add `share` times the cosine of every two texts' words to gram (n, n), in place.

    Args:
        weights: (n, w) sparse, of `weigh_words`.
    """
    for part in torch.arange(len(gram)).split(1024):  # all at once would be another (n, n)
        block = weights.index_select(0, part).to_dense().T.contiguous()
        gram[:, part] += share * torch.sparse.mm(weights, block)
