"""A scorer of behaviour joined with a source of users' knowledge; trained in `models.joint_training`.

Snapshots (`models.snapshots`) keep it honest: knowledge of a moment is made from what came before it and is used for
the events after it, in training as in serving. A composition without a source is the control "as many extra steps".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.backbone import Backbone, ItemSide
from models.constraint import trust_region
from models.dataset import IntArray
from models.evaluation import hidden_before, target_ranks
from models.protocols import Age, Ranks, moments
from models.sequences import Sequences

BATCH = 16  # moments whose knowledge is generated at a time
CHUNK = 512  # moments between two reports of progress


@dataclass(frozen=True, slots=True)
class Moments:
    """B moments of users for which knowledge is wanted.

    Args:
        user: (B,) user rows.
        hidden: (B, d) the reference's state of the user then.
        histories: (B, H) newest item rows before, oldest first, −1 = none.
    """

    user: IntArray
    hidden: Tensor
    histories: IntArray


class Source(nn.Module):
    """Makes users' knowledge; trainable.

    Attributes:
        items: H, items of a history it reads.
        snapshots: moments it is trained on per epoch: what a pass costs decides.
    """

    items: int
    snapshots: int

    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, K, d)."""
        raise NotImplementedError

    def log(self) -> dict[str, float]:
        """Return figures of its inner state (use of codes, say)."""
        return {}


class Composed(nn.Module):
    """Backbone, source and fusion.

    Args:
        backbone: the policy's scorer; a copy of the reference, or one that knows item texts.
        reference: the frozen scorer of behaviour alone that it is measured against.
        source, fusion: None = none, the composition is its backbone.
        shuffled: give every moment another one's knowledge; what is left is what knowledge in general gives.
    """

    def __init__(
        self, backbone: Backbone, reference: Backbone, source: Source | None, fusion: nn.Module | None,
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        self.shuffled = shuffled
        self.backbone, self.source, self.fusion = backbone, source, fusion
        self.reference = reference.eval().requires_grad_(False)

    def knowledge(self, moments: Moments) -> Tensor | None:
        """Return the knowledge (B, K, d) of a batch of moments of different users, None without a source."""
        if self.source is None:
            return None
        vectors = self.source(moments)
        return vectors.roll(1, 0) if self.shuffled else vectors

    def fuse(self, hidden: Tensor, vectors: Tensor | None) -> Tensor:
        """Return hidden states (m, d) with what knowledge (m, K, d) changes of them; None = nothing."""
        if vectors is None or self.fusion is None:
            return hidden
        return hidden + self.fusion(hidden[:, None], vectors)[:, 0]

    def scores(self, hidden: Tensor, vectors: Tensor | None, side: ItemSide) -> Tensor:
        """Return logits (m, n) for hidden states (m, d) of the backbone and knowledge (m, K, d)."""
        return self.backbone.scores(self.fuse(hidden, vectors), side)

    @torch.no_grad()
    def rank(
        self, sequences: Sequences, begin: IntArray, age: Age, epsilon: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Ranks:
        """Rank the item of every event from row `begin` on of each user.

        Args:
            age: of the knowledge that is used.
            epsilon: full trust radius, nats: p is the best within KL(p ‖ p_ref) ≤ ε; None = the fused scores as they
                are.
            progress: called with moments done and moments in all.
        """
        self.eval()
        rows, hidden = hidden_before(self.backbone, sequences, begin)
        own = moments(sequences, begin, rows, age)
        vectors, which = self._vectors(sequences, own, progress)
        side = self.backbone.item_side()
        ref_hidden = hidden_before(self.reference, sequences, begin)[1] if epsilon is not None else None

        def scores(part: Tensor) -> Tensor:
            if vectors is None:
                return self.backbone.scores(hidden[part], side)
            index = which[part]
            fused = hidden[part]
            known = index >= 0
            if known.any():
                fused[known] = self.fuse(fused[known], vectors[index[known]])
            logits = self.backbone.scores(fused, side)
            if ref_hidden is None:
                return logits
            ref = self.reference.scores(ref_hidden[part]).log_softmax(-1)
            radius = torch.where(known, float(epsilon or 0.0), 0.0)
            return trust_region(ref, logits.log_softmax(-1) - ref, radius)[0]

        return Ranks(rows, *target_ranks(scores, self.backbone.n_items, sequences, rows))

    def _vectors(
        self, sequences: Sequences, own: IntArray, progress: Callable[[int, int], None] | None,
    ) -> tuple[Tensor | None, Tensor]:
        """Return knowledge (u, K, d) of the distinct moments, and which of it each event uses (m,), −1 = none."""
        low = sequences.offsets[np.searchsorted(sequences.offsets, own, "right") - 1]
        which = torch.full((len(own),), -1, dtype=torch.int64)
        has = np.flatnonzero(own > low)
        if self.source is None or not len(has):
            return None, which
        places, inverse = np.unique(own[has], return_inverse=True)
        which[torch.from_numpy(has)] = torch.from_numpy(inverse)
        first = sequences.offsets[1:].copy()
        np.minimum.at(first, np.searchsorted(sequences.offsets, places, "right") - 1, places)
        at, hidden = hidden_before(self.reference, sequences, first)
        parts = []
        for begin in range(0, len(places), CHUNK):
            chunk = places[begin : begin + CHUNK]
            state = hidden[torch.from_numpy(np.searchsorted(at, chunk))]
            for some in range(0, len(chunk), BATCH):
                piece = slice(some, some + BATCH)
                parts.append(self.source(moments_at(sequences, chunk[piece], state[piece], self.source.items)))
            if progress is not None:
                progress(min(begin + CHUNK, len(places)), len(places))
        vectors = torch.cat(parts)
        if self.shuffled:  # over all moments: those next to each other are of the same user
            vectors = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))]
        return vectors, which


def moments_at(sequences: Sequences, rows: IntArray, hidden: Tensor, items: int) -> Moments:
    """Return the moments before rows (B,), with the newest `items` of each user's history."""
    user = np.searchsorted(sequences.offsets, rows, "right") - 1
    places = rows[:, None] - np.arange(items, 0, -1)
    inside = places >= sequences.offsets[user][:, None]
    return Moments(user, hidden, np.where(inside, sequences.item[np.maximum(places, 0)], -1))
