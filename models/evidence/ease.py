"""EASE: item–item weights in closed form, and the evidence that a history gives for items.

B = argmin ‖X − XB‖² + λ‖B‖² with a zero diagonal, X the users × items matrix of the training part, in closed form
(EASE, Steck, WWW 2019, arXiv 1905.03375). EASE treats the history as a set, which complements a transformer that reads
it as a sequence: stream-time NDCG@10 on known items rises from .0868 to .1003 on MovieLens-100K and from .0200 to .0236
on Amazon Beauty (`make bench-quality`, one seed).

Item knowledge can serve as additional rows of X (collective EASE, Jeunen et al., RecSys 2020): words of the texts, a
sentence encoder's similarities, and words that a language model wrote (`models.evidence.item_knowledge`). Items are
then similar if they share a maker or a kind, too. This helps most for items with few users, and it is the only signal
for items without users. Where texts say little, it costs, so each part has a weight that held-out events choose.

The evidence is Σ_j 2^(−j/h) B[item_j] over the history, newest first; its largest `SIZE` entries are kept. Ranking
recomputes it for every request (`ranking.evidence`). Evidence from a refresh is stored with the user's vectors and ages
with them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.evidence.item_knowledge import BEHAVIOUR, ItemKnowledge, Parts
from models.evidence.words import add_encodings, add_similarity, weigh_words
from models.scorers.fusion import Evidence

# Neighbours kept per item, and entries kept per user. MovieLens NDCG@10: .1182 with 128 and 128, .1178 with 64 and 64,
# .1179 with all 1,682.
NEIGHBOURS = 128
SIZE = 128
HALF_LIFE = 20.0  # h in items of the history; `models.calibration.reference` replaces it
RIDGE = 2.0  # λ as a multiple of the mean number of users per item: 95 on MovieLens, 26 on Beauty
DENSE = 32_000  # items up to which evidence is summed over the whole catalogue, for all histories at once
STEP = 2.0**-13  # weights are multiples of this, so every store returns them exactly; the largest are near 0.3
MOST = 16_000  # the most popular items enter the closed form: 1 GB per matrix and 30 CPU seconds


@dataclass(frozen=True, slots=True)
class Ease:
    """The largest entries of each row of B.

    Args:
        neighbours: (n, k) int64 or int32 item rows; unused entries have weight 0.
        weights: (n, k) float32, or float16 as stored.
        half_life: h, in items of the history.
        parts: weights of item knowledge in the fit.
        diagonal: (n,) float32, diagonal of the inverse that B was read from, times the mean number of users per item;
            0 = the item was not in the closed form. None = not known. Items that come later need it and `users`.
        users: (n,) float32, users of each item, as multiples of their mean.
    """

    neighbours: Tensor
    weights: Tensor
    half_life: float = HALF_LIFE
    parts: Parts = BEHAVIOUR
    diagonal: Tensor | None = None
    users: Tensor | None = None

    @classmethod
    def none(cls, n_items: int) -> Ease:
        """Return an instance without neighbours, whose evidence is always empty."""
        return cls(torch.zeros(n_items, 0, dtype=torch.int64), torch.zeros(n_items, 0))

    @classmethod
    def fit(
        cls, sequences: Sequences, n_items: int, knowledge: ItemKnowledge | None = None, parts: Parts = BEHAVIOUR,
    ) -> Ease:
        """Fit the weights to users' sequences and, optionally, to item knowledge; see `ClosedForm`."""
        return ClosedForm(sequences, n_items, knowledge).solve(parts)

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
        places, own = self.neighbours[at].flatten(1).long(), torch.where(there, rows, n)
        sums = _dense_sums if n <= max(DENSE, places.shape[1]) else _sparse_sums
        best, total = sums(places, spread, own, n)
        weights = (total / STEP).round() * STEP
        return Evidence(torch.where(weights == 0, -1, best), weights)


def _dense_sums(places: Tensor, spread: Tensor, own: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the items (B, ≤ SIZE) with the largest sums of `spread` (B, M) by `places` (B, M), and the sums.

    Args:
        own: (B, H) items that get no sum; n = none.
    """
    total = torch.zeros(len(places), n + 1).scatter_add_(1, places, spread)
    total.scatter_(1, own, 0.0)  # column n takes the padding
    best = total[:, :n].abs().topk(min(SIZE, n), 1).indices
    return best, total.gather(1, best)


def _sparse_sums(places: Tensor, spread: Tensor, own: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the same as `_dense_sums` without a pass over the catalogue: 0.2 ms a history of 50 at any size.

    Only the entries of two uninitialised arrays that `places` names are written and read.
    """
    order = torch.arange(places.shape[1], dtype=torch.int32)
    total, last = torch.empty(n + 1), torch.empty(n + 1, dtype=torch.int32)
    best, sums = [], []
    for some, values, without in zip(places, spread, own, strict=True):
        total[some] = 0.0
        total.scatter_add_(0, some, values)
        total[without] = 0.0
        last[some] = order  # one of equal places keeps its number, and counts
        found = torch.where(last[some] == order, total[some], 0.0)
        top = found.abs().topk(min(SIZE, len(some))).indices
        best.append(some[top])
        sums.append(found[top])
    return torch.stack(best), torch.stack(sums)


class ClosedForm:
    """The closed form on one set of sequences, to be solved for several weights of item knowledge.

    Args:
        sequences: users' sequences.
        n_items: size of the catalogue.
        knowledge: of the catalogue's items; needed for parts with a weight above 0.
        keep: keep the similarities between solutions. They are (m, m) float32 for each part.
        only: (m,) item rows to use, ascending; None = all that have users or knowledge.
    """

    def __init__(
        self, sequences: Sequences, n_items: int, knowledge: ItemKnowledge | None = None, keep: bool = False,
        only: IntArray | None = None,
    ) -> None:
        self.n_items, self._knowledge, self._only = n_items, knowledge, only
        self._sequences = sequences
        self._counts = np.bincount(sequences.item, minlength=n_items)
        self._kept: dict[tuple[str, bytes], Tensor] | None = {} if keep else None

    def restricted(self, only: IntArray | None) -> ClosedForm:
        """Return the closed form over the items `only` (m,), or all, that keeps similarities between solutions."""
        return ClosedForm(self._sequences, self.n_items, self._knowledge, keep=True, only=only)

    def solve(self, parts: Parts = BEHAVIOUR) -> Ease:
        """Return the weights. An item without users gets neighbours only through what is known of it.

        Raises:
            ValueError: a part has a weight but no knowledge.
        """
        on = {name: weight for name, weight in asdict(parts).items() if weight > 0}
        for name in on:
            self._described(name)
        has = np.zeros(self.n_items, dtype=bool)
        for name in on if self._kept is None else self._names():  # kept similarities are of the same items always
            has |= self._described(name)
        known = np.flatnonzero((self._counts > 0) | has)
        chosen = self._only if self._only is not None else np.sort(
            known[np.argsort(-self._counts[known], kind="stable")[:MOST]])
        if len(chosen) < 2 or not self._counts.any():
            return Ease.none(self.n_items)
        gram = self._part("users", chosen, torch.zeros(len(chosen), len(chosen)), 1.0)
        mean = float(self._counts_once(chosen).sum()) / int((self._counts[chosen] > 0).sum())
        for name, weight in on.items():
            gram = self._part(name, chosen, gram, weight * mean)
        weights = _inverse(gram, RIDGE * mean)
        own = weights.diagonal().clone()
        weights.div_(-own)  # column j is divided by its diagonal entry
        weights.fill_diagonal_(0.0)
        k = min(NEIGHBOURS, len(chosen) - 1)
        neighbours, kept = torch.zeros(self.n_items, k, dtype=torch.int64), torch.zeros(self.n_items, k)
        rows, diagonal, users = torch.from_numpy(chosen), torch.zeros(self.n_items), torch.zeros(self.n_items)
        diagonal[rows], users[rows] = own * mean, torch.from_numpy(self._counts_once(chosen)).float() / mean
        for part in torch.arange(len(chosen)).split(1024):  # sorting all rows at once would take another 1 GB
            best = weights[part].abs().topk(k, 1).indices
            neighbours[rows[part]], kept[rows[part]] = rows[best], weights[part].gather(1, best)
        # The artifact stores half precision; rounding here keeps fitted and loaded models equal.
        return Ease(neighbours, kept.half().float(), parts=parts, diagonal=diagonal, users=users)

    def _names(self) -> list[str]:
        known = self._knowledge
        return [name for name in asdict(BEHAVIOUR) if known is not None and known.has(name)]

    def _counts_once(self, chosen: IntArray) -> IntArray:
        """Return the number of users of each chosen item."""
        users = np.repeat(np.arange(len(self._sequences.offsets) - 1), self._sequences.lengths())
        pairs = np.unique(users * self.n_items + self._sequences.item)
        return np.bincount(pairs % self.n_items, minlength=self.n_items)[chosen]

    def _described(self, name: str) -> np.ndarray:
        """Return (n_items,) bool: items of which a part knows something."""
        known = self._knowledge
        if known is None or not known.has(name):
            raise ValueError(f"the part {name!r} has a weight, and there is no such knowledge")
        if name == "encoder":
            assert known.encoded is not None  # noqa: S101 - `has` looked
            return np.any(known.encoded != 0, 1)
        return np.array([bool(text) for text in (known.texts if name == "words" else known.joined())])

    def _part(self, name: str, chosen: IntArray, gram: Tensor, share: float) -> Tensor:
        """Return gram (m, m) plus `share` times a part; gram is modified."""
        if self._kept is None:
            self._add(name, chosen, gram, share)
            return gram
        key = name, chosen.tobytes()
        if key not in self._kept:
            self._kept[key] = torch.zeros_like(gram)
            self._add(name, chosen, self._kept[key], 1.0)
        return gram.add_(self._kept[key], alpha=share)

    def _add(self, name: str, chosen: IntArray, gram: Tensor, share: float) -> None:
        if name == "users":
            gram.add_(torch.from_numpy(_gram(self._sequences, self.n_items, chosen)), alpha=share)
            return
        assert self._knowledge is not None  # noqa: S101 - `_described` looked
        known = self._knowledge.at(chosen.tolist())
        if name == "encoder":
            assert known.encoded is not None  # noqa: S101 - `_described` looked
            add_encodings(gram, torch.from_numpy(np.ascontiguousarray(known.encoded, np.float32)), share)
        else:
            add_similarity(gram, weigh_words(known.texts if name == "words" else known.joined()), share)


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    """Return (gram + ridge I)⁻¹; gram is modified.

    Cutting negative similarities to 0 can leave a slightly negative eigenvalue; then more is added to the diagonal.
    """
    for _ in range(8):
        gram.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            return torch.cholesky_inverse(factor)
        del factor
    raise ValueError("the item–item matrix has no inverse; its similarities are not finite")


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
