"""A behaviour scorer combined with a source of user knowledge; trained in `models.knowledge.training`.

Snapshots (`models.scorers.snapshots`) prevent leaks from the future: knowledge for a moment is made from earlier events
and used for later ones, in training as in serving. A composition without a source serves as the control "as many extra
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
from models.scorers.ranks import hidden_before, seen_pairs, target_ranks
from models.trust.region import over_catalogue

BATCH = 16  # moments per knowledge generation pass


class Composed(nn.Module):
    """Backbone, source and fusion.

    Args:
        backbone: the policy's scorer: a copy of the reference, or a scorer that reads item texts.
        reference: the frozen behaviour-only scorer that the composition is compared with.
        source, fusion: None = no knowledge; the composition equals its backbone.
        shuffled: give every moment the knowledge of another one. Any remaining gain does not depend on the user.

    Attributes:
        informed: share of the events of the last `rank` that had knowledge, which was not zero.
        uses_reference: whether `served` needs the reference's scores without a trust region, too.
    """

    uses_reference = False
    informed = 0.0

    def __init__(
        self, backbone: Backbone, reference: Backbone, source: Source | None, fusion: nn.Module | None,
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        self.shuffled = shuffled
        self.backbone, self.source, self.fusion = backbone, source, fusion
        self.reference = reference.eval().requires_grad_(False)

    def knowledge(self, moments: Moments) -> Tensor | None:
        """Return knowledge (B, K, d) for a batch of moments of different users; None without a source."""
        if self.source is None:
            return None
        vectors = self.source(moments)
        return vectors.roll(1, 0) if self.shuffled else vectors

    def fuse(self, hidden: Tensor, vectors: Tensor | None) -> Tensor:
        """Return hidden states (m, d) fused with knowledge (m, K, d); None = no knowledge, states unchanged."""
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
        """Rank the target item of each user's events from row `begin` on.

        Args:
            age: age of the knowledge at the event.
            epsilon: full trust radius, see `models.trust.region`; events without knowledge get p_ref. None = the fused
                scores without a trust region.
            least: events a user needs before knowledge is generated.
            progress: called with the number of moments done and the total.
            rows: rank only these events, ascending; None = all.
        """
        self.eval()
        rows, hidden = hidden_before(self.backbone, sequences, begin, rows=rows)
        own = moments(sequences, begin, rows, age)
        known = own >= sequences.offsets[np.searchsorted(sequences.offsets, own, "right") - 1] + max(1, least)
        vectors, which = self._vectors(sequences, np.where(known, own, -1), progress)
        told = torch.zeros(len(which)) if vectors is None else (vectors != 0).flatten(1).any(1)[which] & (which >= 0)
        self.informed = float(told.float().mean()) if len(which) else 0.0
        side = self.backbone.item_side()
        # Only a trust region and evidence need the reference's scores.
        needs_reference = epsilon is not None or self.uses_reference
        ref_hidden = hidden_before(self.reference, sequences, begin, rows=rows)[1] if needs_reference else None

        def scores(part: Tensor) -> Tensor:
            has = which[part] >= 0
            fused = hidden[part]
            if vectors is not None and has.any():
                fused[has] = self.fuse(fused[has], vectors[which[part][has]])
            logits = self.backbone.scores(fused, side)
            if ref_hidden is None:
                return logits
            return self.served(
                logits, self.reference.scores(ref_hidden[part]), sequences, rows[part.numpy()], has, epsilon)

        return Ranks(rows, *target_ranks(scores, self.backbone.n_items, sequences, rows))

    def served(
        self, logits: Tensor, reference: Tensor, sequences: Sequences, rows: IntArray, has: Tensor,
        epsilon: float | None,
    ) -> Tensor:
        """Return the logits (m, n) that are served: within the trust region, for events with knowledge.

        Args:
            logits, reference: (m, n) of backbone and reference.
            rows: (m,) of `sequences`.
            has: (m,) bool, events with user knowledge.
            epsilon: full trust radius; None = no trust region.
        """
        if epsilon is None:
            return logits
        low = sequences.offsets[np.searchsorted(sequences.offsets, rows, "right") - 1]
        return over_catalogue(
            reference, logits, torch.where(has, epsilon, 0.0), seen_pairs(sequences, low, rows))

    def _vectors(
        self, sequences: Sequences, own: IntArray, progress: Callable[[int, int], None] | None,
    ) -> tuple[Tensor | None, Tensor]:
        """Generate knowledge for the moments `own` (m,), −1 = no knowledge wanted.

        Returns:
            Knowledge (u, K, d) of the distinct moments; the row of it that each event uses (m,), −1 = none.
        """
        which = torch.full((len(own),), -1, dtype=torch.int64)
        has = np.flatnonzero(own >= 0)
        if self.source is None or not len(has):
            return None, which
        places, inverse = np.unique(own[has], return_inverse=True)
        if self.shuffled:  # across all moments: adjacent moments belong to the same user
            inverse = np.random.default_rng(0).permutation(len(places))[inverse]
        which[torch.from_numpy(has)] = torch.from_numpy(inverse)
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
        return torch.cat(parts), which


