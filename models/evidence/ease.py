"""EASE: item–item weights in closed form, and the evidence that a history gives for items.

B = argmin ‖X − XB‖² + λ‖B‖² with a zero diagonal, X the users × items matrix of the training part, in closed form
(EASE, Steck, WWW 2019, arXiv 1905.03375). EASE treats the history as a set, which complements a transformer that reads
it as a sequence: stream-time NDCG@10 rises from .103 to .118 on MovieLens-100K and from .034 to .038 on Amazon Beauty.

Words of the item texts can serve as additional rows of X (collective EASE, Jeunen et al., RecSys 2020). Items are then
similar if they share a maker or a kind, too. This helps most for items with few users, and it is the only signal for
items without users.

The evidence is Σ_j 2^(−j/h) B[item_j] over the history, newest first; its largest `SIZE` entries are kept. Ranking
recomputes it for every request (`ranking.evidence`). Evidence from a refresh is stored with the user's vectors and ages
with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.evidence.words import add_similarity, weigh_words
from models.scorers.fusion import Evidence

# Neighbours kept per item, and entries kept per user. MovieLens NDCG@10: .1182 with 128 and 128, .1178 with 64 and 64,
# .1179 with all 1,682.
NEIGHBOURS = 128
SIZE = 128
HALF_LIFE = 20.0  # h in items of the history; `models.calibration.evidence` replaces it
RIDGE = 2.0  # λ as a multiple of the mean number of users per item: 95 on MovieLens, 26 on Beauty
STEP = 2.0**-13  # weights are multiples of this, so every store returns them exactly; the largest are near 0.3
MOST = 16_000  # the most popular items enter the closed form: 1 GB per matrix and 30 CPU seconds


@dataclass(frozen=True, slots=True)
class Ease:
    """The largest entries of each row of B.

    Args:
        neighbours: (n, k) int64 item rows; unused entries have weight 0.
        weights: (n, k) float32.
        half_life: h, in items of the history.
        words: weight of the texts in the fit, see `fit`.
    """

    neighbours: Tensor
    weights: Tensor
    half_life: float = HALF_LIFE
    words: float = 0.0

    @classmethod
    def none(cls, n_items: int) -> Ease:
        """Return an instance without neighbours, whose evidence is always empty."""
        return cls(torch.zeros(n_items, 0, dtype=torch.int64), torch.zeros(n_items, 0))

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int, texts: Sequence[str] = (), words: float = 0.0) -> Ease:
        """Fit the weights to users' sequences and, optionally, to the words of item texts.

        Args:
            texts: (n_items,) item texts; needed if `words` > 0.
            words: how much two equal texts count, as a multiple of the mean number of users per item; 0 = texts are
                ignored. An item without users gets neighbours only through its words.
        """
        counts = np.bincount(sequences.item, minlength=n_items)
        has_text = np.array([bool(text) for text in texts]) if words > 0 else np.zeros(n_items, dtype=bool)
        known = np.flatnonzero((counts > 0) | has_text)
        chosen = np.sort(known[np.argsort(-counts[known], kind="stable")[:MOST]])
        if len(chosen) < 2 or not counts.any():
            return cls.none(n_items)
        gram = torch.from_numpy(_gram(sequences, n_items, chosen))
        mean = float(gram.diagonal().sum()) / int((counts[chosen] > 0).sum())
        if words > 0:
            add_similarity(gram, weigh_words([texts[row] for row in chosen.tolist()]), words * mean)
        gram.diagonal().add_(RIDGE * mean)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        del gram
        weights = inverse.div_(-inverse.diagonal().clone())  # column j is divided by its diagonal entry
        weights.fill_diagonal_(0.0)
        k = min(NEIGHBOURS, len(chosen) - 1)
        neighbours, kept = torch.zeros(n_items, k, dtype=torch.int64), torch.zeros(n_items, k)
        rows = torch.from_numpy(chosen)
        for part in torch.arange(len(chosen)).split(1024):  # sorting all rows at once would take another 1 GB
            best = weights[part].abs().topk(k, 1).indices
            neighbours[rows[part]], kept[rows[part]] = rows[best], weights[part].gather(1, best)
        # The artifact stores half precision; rounding here keeps fitted and loaded models equal.
        return cls(neighbours, kept.half().float(), words=words)

    def evidence(self, histories: Tensor | IntArray) -> Evidence:
        """Return the evidence from histories (B, H) of item rows, oldest first, −1 = none.

        It excludes the items of the history.
        """
        rows = torch.as_tensor(histories, dtype=torch.int64)
        n = len(self.neighbours)
        there = rows >= 0
        newer = there.flip(1).cumsum(1).flip(1) - 1  # number of newer items
        decay = torch.where(there, 2.0 ** (-newer / self.half_life), 0.0)
        at = rows.clamp(min=0)
        spread = (self.weights[at] * decay[..., None]).flatten(1)
        total = torch.zeros(len(rows), n + 1).scatter_add_(1, self.neighbours[at].flatten(1), spread)
        total.scatter_(1, torch.where(there, rows, n), 0.0)  # column n takes the padding
        best = total[:, :n].abs().topk(min(SIZE, n), 1).indices
        weights = (total.gather(1, best) / STEP).round() * STEP
        return Evidence(torch.where(weights == 0, -1, best), weights)


def _gram(sequences: Sequences, n_items: int, chosen: IntArray) -> np.ndarray:
    """Return XᵀX over `chosen` items, (m, m) float32, each item counted once per user."""
    place = np.full(n_items, -1)
    place[chosen] = np.arange(len(chosen))
    gram = np.zeros((len(chosen), len(chosen)), np.float32)
    for low, high in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        items = np.unique(place[sequences.item[low:high]])
        items = items[items >= 0]
        gram[np.ix_(items, items)] += 1.0
    return gram
