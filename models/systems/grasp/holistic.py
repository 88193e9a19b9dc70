"""GRASP's knowledge: descriptions of users and items, their nearest neighbours, and holistic attention over both.

Reconstructed from arXiv 2511.20177: Att(q, X) = Σ_t mask_t σ(qW_Q·x_tW_K/√d + b) x_tW_V, where b starts at −log l
because sums of sigmoids grow with the length l; a_self = Att(u, X), a_sim = Att(ū, X̄), a_glob = Att([u; ū], [X; X̄]).
Bars are means over the ten nearest neighbours. The description of a moment uses only the history before it, and the
user bank uses only training events, so nothing leaks from the future. Users are not their own neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.compute.neighbours import Banks, exact, mean_of
from models.compute.pca import Whitening
from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.knowledge.sources import FROZEN, Moments, Source
from models.systems.grasp.descriptions import Descriptions

NEAREST = 10


class HolisticAttention(nn.Module):
    """One query over a set, weighted by sigmoids (or, for the ablation, by softmax).

    Args:
        query, keys: widths of query and keys.
        dim: d, width of the result.
        length: l, typical number of items in a set.
        softmax: use weights that sum to 1.
    """

    def __init__(self, query: int, keys: int, dim: int, length: int, softmax: bool = False) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(query, dim, bias=False), nn.Linear(keys, dim, bias=False)
        self.value = nn.Linear(keys, dim, bias=False)
        self.bias = None if softmax else nn.Parameter(torch.tensor(-math.log(max(1, length))))

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Return (B, d) for a query (B, q) over keys (B, H, k); mask (B, H) is False for missing keys."""
        like = torch.einsum("bd,bhd->bh", self.query(query), self.key(keys)) * self.query.out_features**-0.5
        if self.bias is None:
            weights = torch.softmax(like.masked_fill(~mask, torch.finfo(like.dtype).min), -1)
        else:
            weights = torch.sigmoid(like + self.bias)
        return torch.einsum("bh,bhd->bd", weights * mask, self.value(keys))


class HolisticSource(Source):
    """GRASP's source: three vectors per user: self, similar and global.

    Args:
        training: sequences for the users' descriptions in the bank; later events are not used.
        described: makes descriptions of histories.
        items: H, number of items of a history to describe and attend to.
        dim: d.
        softmax: the ablation.
        progress: called with the number of users described and the total.
        banks: builds the banks for neighbour search.
        similar: (n_items, w) from `similar_items`; None = computed here.
    """

    item: Tensor
    similar: Tensor
    users: Tensor

    def __init__(
        self, training: Sequences, described: Descriptions, items: int, dim: int, softmax: bool = False,
        progress: Callable[[int, int], None] | None = None, banks: Banks = exact, similar: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.items, self.snapshots = items, FROZEN
        self._described = described
        embeddings = torch.from_numpy(described.cache.embeddings)
        whiten = Whitening(embeddings)
        self.register_buffer("item", whiten(embeddings), persistent=False)
        if similar is None:
            similar = _mean_of_others(self.item, banks)
        self.register_buffer("similar", similar, persistent=False)
        last = training.offsets[1:][:, None] - np.arange(items, 0, -1)
        inside = last >= training.offsets[:-1][:, None]
        histories = np.where(inside, training.item[np.clip(last, 0, max(0, len(training.item) - 1))], -1)
        known = np.asarray(inside.any(1))
        states = described(histories[known], progress)
        self.whiten = Whitening(states)
        self.register_buffer("users", self.whiten(states), persistent=False)
        # Users without training events are not in the bank.
        self._place = np.where(known, np.cumsum(known) - 1, -1)
        self._bank = banks("users", self.users)
        self._found: dict[tuple[int, bytes], Tensor] = {}  # neighbours by moment, reused by later epochs
        x, u = whiten.width, self.whiten.width
        self.own = HolisticAttention(u, x, dim, items, softmax)
        self.others = HolisticAttention(u, x, dim, items, softmax)
        self.both = HolisticAttention(2 * u, 2 * x, dim, items, softmax)

    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, 3, d)."""
        device = self.item.device
        rows = torch.from_numpy(moments.histories).to(device)
        mask, at = rows >= 0, rows.clamp(min=0)
        user = self.whiten(self._described(moments.histories).to(device))
        alike = mean_of(self.users, self._nearest(moments, user.cpu()).to(device))
        x, near = self.item[at], self.similar[at]
        return torch.stack([
            self.own(user, x, mask), self.others(alike, near, mask),
            self.both(torch.cat([user, alike], -1), torch.cat([x, near], -1), mask)], 1)

    def _nearest(self, moments: Moments, described: Tensor) -> Tensor:
        """Return bank rows (B, ≤10) of the users nearest to the users of moments, by their descriptions (B, w)."""
        place = self._place[moments.user]
        keys = [(own, history.tobytes()) for own, history in zip(place.tolist(), moments.histories, strict=True)]
        missing = [row for row, key in enumerate(keys) if key not in self._found]
        if missing:
            found = self._bank.nearest(described[missing], NEAREST, torch.from_numpy(place[missing]))
            self._found.update((keys[row], rows) for row, rows in zip(missing, found, strict=True))
        return torch.stack([self._found[key] for key in keys])

    def members(self) -> IntArray:
        """Return the rows of the users in the bank, in bank order."""
        rows = np.flatnonzero(self._place >= 0)
        return rows[np.argsort(self._place[rows])]

    def use_user_bank(self, users: Tensor, banks: Banks = exact) -> None:
        """Use a stored user bank (b, w). User row r is bank row r; user row −1 is not in the bank."""
        self.users = users
        self._place = np.append(np.arange(len(users)), -1)  # place[−1] is −1
        self._bank = banks("users", users)
        self.clear_neighbours()

    def clear_neighbours(self) -> None:
        """Clear the cached neighbours; moments of live users do not recur."""
        self._found = {}


class ConcatFusion(nn.Module):
    """h ← h + W (φ([h; a_1 … a_K]) − φ([h; 0 … 0])), W = 0 at the start, so training begins without knowledge.

    The second term leaves to knowledge what comes from knowledge. Without it the layer also learns from h alone, for
    users whose knowledge is zero, too: a larger scorer and more steps, and not one word from a language model.
    """

    def __init__(self, dim: int, vectors: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim * (1 + vectors), 2 * dim)
        self.out = nn.Linear(2 * dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, knowledge: Tensor) -> Tensor:
        """Return the update (B, T, d) of hidden (B, T, d) for knowledge (B, K, d)."""
        state = self.norm(hidden)
        known = knowledge.flatten(1)[:, None].expand(-1, hidden.shape[1], -1)
        with_it, without = (
            nn.functional.gelu(self.inner(torch.cat([state, one], -1))) for one in (known, torch.zeros_like(known)))
        return self.out(with_it - without)


def texts_with_neighbours(embeddings: np.ndarray, banks: Banks = exact) -> Tensor:
    """Return condensed item texts joined with the mean of their nearest texts, (n, 2 × ≤128), for a text scorer."""
    whiten = Whitening(torch.from_numpy(embeddings))
    item = whiten(torch.from_numpy(embeddings))
    item[~torch.from_numpy((embeddings != 0).any(1))] = 0.0
    return torch.cat([item, _mean_of_others(item, banks)], 1)


def similar_items(embeddings: np.ndarray, banks: Banks = exact) -> Tensor:
    """Return the mean (n, w) of each item's nearest items, by whitened text."""
    vectors = torch.from_numpy(embeddings)
    return _mean_of_others(Whitening(vectors)(vectors), banks)


def _mean_of_others(item: Tensor, banks: Banks) -> Tensor:
    nearest = banks("items", item).nearest(item, NEAREST, torch.arange(len(item)))
    return mean_of(item, nearest)
