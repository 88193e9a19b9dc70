"""Held-out events with the transformers' scores, to choose how much each kind of evidence counts.

The users are halved: one half chooses weights, the other measures what each part is worth and sets the trust radius. A
weight measured on the events that chose it would look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.reference import weighed
from models.scorers.backbone import Backbone
from models.scorers.fusion import Evidence
from models.scorers.ranks import hidden_before, seen_pairs
from models.scorers.snapshots import before

UNSEEN = -1e4  # logit of items the user already had; with −∞ a difference would be NaN
ROOM = 80_000_000  # scores of one scorer, 320 MB: 6,600 events of Beauty's 12,101 items, 800 of 100,000
CHUNK = 256  # events at a time: 12,000 float32 scores each are 12 MB
LIKELY = 1500  # events that a temperature is chosen on
TOLERANCE = 1.005  # τ is found within half a per cent, where the loss changes by less than 10⁻⁴ nats


@dataclass(frozen=True, slots=True)
class HeldOut:
    """m held-out events of users with a history, each an item that the user has not had.

    Args:
        user: (m,) user rows.
        target: (m,) item rows.
        histories: (m, H) item rows known before the event, oldest first, −1 = none.
        scores: (m, n) logits of each scorer; items the user has had are at `UNSEEN`.
    """

    user: IntArray
    target: Tensor
    histories: IntArray
    scores: tuple[Tensor, ...]

    @classmethod
    @torch.no_grad()
    def of(
        cls, sequences: Sequences, begin: IntArray, scorers: Sequence[Backbone], limit: int, seed: int = 0,
    ) -> HeldOut:
        """Return at most `limit` events from rows `begin` (users,) on, with the scores of one or more scorers.

        There are fewer where the catalogue is so large that their scores would not fit into memory.
        """
        max_len = scorers[0].max_len
        limit = min(limit, ROOM // scorers[0].n_items)
        first = np.repeat(begin, sequences.lengths())
        rows = np.flatnonzero(np.arange(len(sequences.item)) >= first)
        rows = rows[before(sequences, rows, 1)[:, 0] >= 0]
        rows = np.random.default_rng(seed).permutation(rows)[:limit]
        rows = np.sort(rows[~_repeated(sequences, rows)])
        low = sequences.offsets[np.searchsorted(sequences.offsets, rows, "right") - 1]
        seen = seen_pairs(sequences, low, rows)
        scores = []
        for scorer in scorers:
            found, hidden = hidden_before(scorer, sequences, begin, rows=rows)
            assert (found == rows).all()  # noqa: S101 - both ascend
            side = scorer.item_side()
            logits = torch.cat([torch.zeros(0, scorer.n_items)] + [
                scorer.scores(part, side) for part in hidden.split(CHUNK)])
            logits[seen] = UNSEEN
            scores.append(logits)
        return cls(np.searchsorted(sequences.offsets, rows, "right") - 1, torch.from_numpy(sequences.item[rows]),
                   before(sequences, rows, max_len), tuple(scores))

    def __len__(self) -> int:
        return len(self.user)

    def evidence(self, affinity: Ease) -> Evidence:
        """Return the evidence from the histories, (m, M)."""
        parts = [affinity.evidence(self.histories[at : at + CHUNK]) for at in range(0, max(1, len(self)), CHUNK)]
        return Evidence(torch.cat([part.items for part in parts]), torch.cat([part.weights for part in parts]))

    def base(self, shares: Sequence[float], part: slice | Tensor) -> Tensor:
        """Return the scorers' logits (c, n) of events `part`, each with its share."""
        total = shares[0] * self.scores[0][part]
        for share, scores in zip(shares[1:], self.scores[1:], strict=True):
            if share:
                total = total.add(scores[part], alpha=share)
        return total

    def ranks(self, shares: Sequence[float], evidence: Evidence, gains: Sequence[float]) -> list[IntArray]:
        """Return the targets' ranks (m,) for each gain of the evidence.

        Args:
            shares: of each scorer in the logits.
        """
        out = np.zeros((len(gains), len(self)), np.int64)
        for at in range(0, len(self), CHUNK):
            part = slice(at, at + CHUNK)
            base, own = self.base(shares, part), self.target[part, None]
            for row, gain in enumerate(gains):
                logits = weighed(base, Evidence(evidence.items[part], evidence.weights[part]), gain)
                out[row, part] = ((logits >= logits.gather(1, own)).sum(1) - 1).numpy()
        return list(out)

    def temperature(self, shares: Sequence[float], evidence: Evidence, gain: float) -> tuple[float, float]:
        """Return the temperature τ with the highest likelihood and the mean loss (nats) it gives.

        The likelihood of τ s is concave in τ, so its slope is bisected, over all τ from 1/32 to 32.
        """
        # Events are in order of users; a random sample has more of them.
        taken = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(self))[:LIKELY]))
        if not len(taken):
            return 1.0, 0.0
        logits = weighed(self.base(shares, taken), evidence[taken], gain)
        own = logits.gather(1, self.target[taken, None]).squeeze(1)
        low, high = 1 / 32, 32.0
        while high / low > TOLERANCE:
            middle = (low * high) ** 0.5
            expected = sum(float(((middle * rows).softmax(1) * rows).sum()) for rows in logits.split(CHUNK))
            low, high = (middle, high) if float(own.sum()) > expected else (low, middle)
        middle = (low * high) ** 0.5
        loss = sum(float((middle * rows).logsumexp(1).sum()) for rows in logits.split(CHUNK))
        return middle, (loss - middle * float(own.sum())) / len(taken)


def halves(begin: IntArray, offsets: IntArray, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Return the first held-out rows (users,) for either half of the users; the other half's users have none."""
    first = np.random.default_rng(seed).random(len(begin)) < 0.5
    return np.where(first, begin, offsets[1:]), np.where(first, offsets[1:], begin)


def _repeated(sequences: Sequences, rows: IntArray) -> np.ndarray:
    """Return (m,) bool: whether the user has had the item before."""
    user = np.repeat(np.arange(len(sequences.offsets) - 1), sequences.lengths())
    pair = user * (int(sequences.item.max(initial=0)) + 1) + sequences.item
    first = np.zeros(len(pair), dtype=bool)
    first[np.unique(pair, return_index=True)[1]] = True
    return np.asarray(~first[rows])
