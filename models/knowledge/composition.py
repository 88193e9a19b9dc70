"""A scorer of behaviour joined with a source of users' knowledge; trained in `models.knowledge.training`.

Snapshots (`models.scorers.snapshots`) keep it honest: knowledge of a moment is made from what came before it and is
used for the events after it, in training as in serving. A composition without a source is the control "as many extra
steps".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.knowledge.sources import Moments, Source, moments_at
from models.measuring.outcomes import Ranks
from models.measuring.protocols import Age, moments
from models.scorers.backbone import Backbone, ItemSide
from models.scorers.ranks import hidden_before, target_ranks
from models.trust.region import trust_region

BATCH = 16  # moments whose knowledge is generated at a time


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
            epsilon: full trust radius, of `models.trust.region`; without knowledge p is p_ref. None = the scores as
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


