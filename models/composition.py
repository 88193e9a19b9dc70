"""A scorer of behaviour joined with a source of users' knowledge; trained in `models.joint_training`.

Snapshots (`models.snapshots`) keep it honest: knowledge of a moment is made from what came before it and is used for
the events after it, in training as in serving. A composition without a source is the control "as many extra steps".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from models.snapshots import before

BATCH = 16  # moments whose knowledge is generated at a time


@dataclass(frozen=True, slots=True)
class Moments:
    """B moments of users for which knowledge is wanted.

    Args:
        user: (B,) user rows.
        hidden: (B, d) the reference's state of the user then.
        histories: (B, H) newest item rows before, oldest first, −1 = none.
        length: (B,) events of the user before.
    """

    user: IntArray
    hidden: Tensor
    histories: IntArray
    length: IntArray


class Source(nn.Module, ABC):
    """Makes users' knowledge; trainable.

    Attributes:
        items: H, items of a history it reads.
        snapshots: moments it is trained on per epoch: what a pass costs decides.
    """

    items: int
    snapshots: int

    @abstractmethod
    def forward(self, moments: Moments) -> Tensor:
        """Return knowledge (B, K, d)."""

    def attach(self, backbone: Backbone) -> None:
        """Share parts with the scorer it is trained with, where the system says so."""

    def auxiliary(self) -> Tensor:
        """Return a loss of its own on the last batch."""
        return torch.zeros(())

    def masked(self) -> list[nn.Parameter]:
        """Return weights that learn only from what an objective masks (`models.objectives.Judged`)."""
        return []

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

    Attributes:
        hears_reference: whether `finish` changes anything, and needs the reference's scores for it.
    """

    hears_reference = False

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
        self, sequences: Sequences, begin: IntArray, age: Age, epsilon: float | None = None, least: int = 1,
        progress: Callable[[int, int], None] | None = None, rows: IntArray | None = None,
    ) -> Ranks:
        """Rank the item of every event from row `begin` on of each user.

        Args:
            age: of the knowledge that is used.
            epsilon: full trust radius, of `models.constraint`; without knowledge p is p_ref. None = the scores as
                they are.
            least: events a user must have had before knowledge is generated.
            progress: called with moments done and moments in all.
            rows: only these events, ascending; None = all.
        """
        self.eval()
        rows, hidden = hidden_before(self.backbone, sequences, begin, rows=rows)
        own = moments(sequences, begin, rows, age)
        known = own >= sequences.offsets[np.searchsorted(sequences.offsets, own, "right") - 1] + max(1, least)
        used, vectors, which = self._vectors(sequences, np.where(known, own, -1), progress)
        side = self.backbone.item_side()
        # The reference is asked only where it is heard: for a radius, or by evidence.
        hears = epsilon is not None or self.hears_reference
        ref_hidden = hidden_before(self.reference, sequences, begin, rows=rows)[1] if hears else None

        def scores(part: Tensor) -> Tensor:
            has = which[part] >= 0
            fused = hidden[part]
            if vectors is not None and has.any():
                fused[has] = self.fuse(fused[has], vectors[which[part][has]])
            logits = self.backbone.scores(fused, side)
            if ref_hidden is None:
                return logits
            ref = self.reference.scores(ref_hidden[part])
            if has.any():
                at = part[has].numpy()
                logits[has] = self.finish(logits[has], ref[has], sequences, used[at], rows[at] - own[at])
            if epsilon is None:
                return logits
            ref = ref.log_softmax(-1)
            radius = torch.where(has, float(epsilon or 0.0), 0.0)
            return trust_region(ref, logits.log_softmax(-1), radius)[0]

        return Ranks(rows, *target_ranks(scores, self.backbone.n_items, sequences, rows))

    def finish(self, logits: Tensor, reference: Tensor, sequences: Sequences, used: IntArray, age: IntArray) -> Tensor:
        """Return logits (m, n) with what knowledge adds to them directly: here nothing. See `hears_reference`.

        Args:
            reference: (m, n) logits of behaviour alone.
            used: (m,) the moments (rows) whose knowledge is used.
            age: (m,) events since it was generated.
        """
        return logits

    def _vectors(
        self, sequences: Sequences, own: IntArray, progress: Callable[[int, int], None] | None,
    ) -> tuple[IntArray, Tensor | None, Tensor]:
        """Make the knowledge of moments `own` (m,), −1 = none wanted.

        Returns:
            The moment whose knowledge each event uses (m,), −1 = none; knowledge (u, K, d) of distinct moments; the row
            of it that each event uses (m,), −1 = none.
        """
        which = torch.full((len(own),), -1, dtype=torch.int64)
        has = np.flatnonzero(own >= 0)
        if self.source is None or not len(has):
            return own, None, which
        places, inverse = np.unique(own[has], return_inverse=True)
        if self.shuffled:  # over all moments: those next to each other are of the same user
            inverse = np.random.default_rng(0).permutation(len(places))[inverse]
        which[torch.from_numpy(has)] = torch.from_numpy(inverse)
        used = np.full(len(own), -1, np.int64)
        used[has] = places[inverse]
        first = sequences.offsets[1:].copy()
        np.minimum.at(first, np.searchsorted(sequences.offsets, places, "right") - 1, places)
        at, hidden = hidden_before(self.reference, sequences, first)
        parts = []
        for begin in range(0, len(places), BATCH):
            chunk = places[begin : begin + BATCH]
            state = hidden[torch.from_numpy(np.searchsorted(at, chunk))]
            parts.append(self.source(moments_at(sequences, chunk, state, self.source.items)))
            if progress is not None:
                progress(begin + len(chunk), len(places))
        return used, torch.cat(parts), which


def moments_at(sequences: Sequences, rows: IntArray, hidden: Tensor, items: int) -> Moments:
    """Return the moments before rows (B,), with the newest `items` of each user's history."""
    user = np.searchsorted(sequences.offsets, rows, "right") - 1
    return Moments(user, hidden, before(sequences, rows, items), rows - sequences.offsets[user])
