"""What a written text of a user says about items: shared words, and the similarity of sentence encodings.

A language model writes what a user will want next, as keywords. An item's score is the tf-idf cosine of the keywords
and the item's text, plus the cosine of their sentence encodings, cubed with negatives cut to 0. The same similarities
relate items to items in the closed form (`models.evidence.ease`).

The scores become evidence of the same form as the closed form's: item rows and weights, the largest `SIZE` per user.
Ranking adds it to the scores with a weight of its own, chosen on held-out moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.evidence.ease import SIZE, STEP
from models.evidence.words import Vocabulary
from models.scorers.fusion import Evidence

Encodings = npt.NDArray[np.float32]
AT_ONCE = 512  # texts scored at a time: 25 MB per thousand items


@dataclass(frozen=True, slots=True)
class ItemTexts:
    """The texts of n items, prepared for matching.

    Args:
        vocabulary: the words that count, and how much.
        words: (n, w) sparse tf-idf weights of the texts, rows of unit length.
        encoded: (n, d) sentence encodings of the texts, rows of unit length or zero; None = words alone.
    """

    vocabulary: Vocabulary
    words: Tensor
    encoded: Tensor | None = None

    @classmethod
    def of(cls, texts: Sequence[str], encoded: Encodings | None = None) -> ItemTexts:
        """Prepare item texts.

        Raises:
            ValueError: there is not one encoding per text.
        """
        if encoded is not None and len(encoded) != len(texts):
            raise ValueError(f"{len(encoded)} encodings of {len(texts)} item texts")
        rows = None if encoded is None else torch.from_numpy(np.ascontiguousarray(encoded, np.float32))
        vocabulary = Vocabulary.of(texts)
        return cls(vocabulary, vocabulary.weigh(texts), rows)

    def similarity(self, texts: Sequence[str], encoded: Encodings | None = None) -> Tensor:
        """Return how well each user's text matches each item, (B, n) float32 in [0, 2], 0 for an empty text.

        Args:
            texts: (B,) users' texts.
            encoded: (B, d) their sentence encodings; needed if the items have encodings.

        Raises:
            ValueError: the items have encodings and the users' texts do not, or not one each.
        """
        if self.encoded is not None and (encoded is None or len(encoded) != len(texts)):
            raise ValueError("items are matched by sentence encodings, so every text of a user needs one")
        words = self.vocabulary.weigh(texts)
        out = torch.zeros(len(texts), self.words.shape[0])
        for part in torch.arange(len(texts)).split(AT_ONCE):
            asked = words.index_select(0, part).to_dense().T.contiguous()
            out[part] = torch.sparse.mm(self.words, asked).T
            if self.encoded is not None:
                assert encoded is not None  # noqa: S101 - checked above
                meant = torch.from_numpy(np.ascontiguousarray(encoded[part.numpy()], np.float32))
                out[part] += (meant @ self.encoded.T).clamp_(min=0.0).pow_(3)
        return out


def as_evidence(similarity: Tensor, size: int = SIZE) -> Evidence:
    """Return the largest `size` similarities of each user as evidence; similarities (B, n) of at least 0."""
    best = similarity.topk(min(size, similarity.shape[1]), 1)
    weights = (best.values / STEP).round() * STEP
    return Evidence(torch.where(weights > 0, best.indices, -1), weights)
