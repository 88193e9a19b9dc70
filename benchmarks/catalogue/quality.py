"""Quality of items that come after the fit: put into the closed form, against another fit that has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from models.data.dataset import Dataset, IntArray
from models.data.sequences import Sequences
from models.evidence.ease import ClosedForm, Ease
from models.evidence.item_knowledge import Encodings, ItemKnowledge, Parts
from models.evidence.later import Described, LaterItems
from models.measuring.metrics import ndcg
from models.measuring.protocols import protocol
from models.scorers.ranks import seen_pairs
from models.scorers.snapshots import before

HALF_LIFE = 6.0
AT_ONCE = 5  # items put together
KNOWN = 4000  # predicted events on items that the fit had


@dataclass(frozen=True, slots=True)
class LaterWorld:
    """A data set in which the items without training events come last, as if they came after the fit.

    Args:
        texts, encoded: of n items.
        fitted: number of items that the fit has.
        past: training events.
        test: all events; `rows` of them are predicted.
    """

    items: list[str]
    texts: list[str]
    encoded: Encodings | None
    fitted: int
    past: Sequences
    test: Sequences
    rows: IntArray

    @classmethod
    def of(cls, dataset: Dataset, encoded: Encodings | None) -> LaterWorld:
        """Return the world of a data set under the protocol of stream time."""
        split = protocol("stream_time", dataset, seed=1)
        seen = np.bincount(split.fold.sequences.item, minlength=split.fold.n_items)
        order = np.concatenate([np.flatnonzero(seen > 0), np.flatnonzero(seen == 0)])
        place = np.argsort(order)
        return cls(
            [dataset.items[row] for row in order], [dataset.texts[row] for row in order],
            None if encoded is None else encoded[order], int((seen > 0).sum()),
            replace(split.fold.sequences, item=place[split.fold.sequences.item]),
            replace(split.test, item=place[split.test.item]), split.rows())

    def known(self, n: int) -> ItemKnowledge:
        """Return what is known of the first n items."""
        return ItemKnowledge(self.texts[:n], None, None if self.encoded is None else self.encoded[:n])

    def fit(self, n: int, parts: Parts) -> Ease:
        """Return the closed form over the first n items."""
        return replace(ClosedForm(self.past, n, self.known(n)).solve(parts), half_life=HALF_LIFE)

    def described(self, rows: list[int]) -> Described:
        """Return what is known of items."""
        return Described([self.texts[row] for row in rows], None if self.encoded is None else self.encoded[rows])

    def figures(self, ease: Ease) -> dict[str, float]:
        """Return NDCG@10 of the closed form alone, on items that the fit had and on those that came later."""
        new = self.test.item[self.rows] >= self.fitted
        old = self.rows[~new]
        old = np.sort(np.random.default_rng(0).permutation(old)[:KNOWN])
        return {"unseen": float(ndcg(self._ranks(ease, self.rows[new])).mean()) if new.any() else 0.0,
                "known": float(ndcg(self._ranks(ease, old)).mean())}

    def _ranks(self, ease: Ease, rows: IntArray) -> IntArray:
        out = [np.zeros(0, np.int64)]
        for begin in range(0, len(rows), 256):
            part = rows[begin : begin + 256]
            evidence = ease.evidence(before(self.test, part, 50))
            scores = torch.zeros(len(part), len(ease.neighbours)).scatter_add_(
                1, evidence.items.clamp(min=0), torch.where(evidence.items >= 0, evidence.weights.float(), 0.0))
            scores[seen_pairs(self.test, self.test.offsets[self.test.user(part)], part)] = -torch.inf
            own = scores.gather(1, torch.from_numpy(self.test.item[part])[:, None])
            out.append(((scores >= own).sum(1) - 1).numpy())
        return np.concatenate(out)


def compare(world: LaterWorld, base: Ease, parts: Parts, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of items put into `base` and of another fit."""
    n = len(world.items)
    later, grown = LaterItems(base, world.known(world.fitted)), base
    for begin in range(world.fitted, n, AT_ONCE):
        rows = list(range(begin, min(n, begin + AT_ONCE)))
        grown = later.put(rows, world.described(rows))
    found = {"put": world.figures(grown)}
    say(f"put into the fit: NDCG@10 {found['put']}")
    found["refit"] = world.figures(world.fit(n, parts))
    say(f"another fit:      NDCG@10 {found['refit']}")
    return found | {"items": n - world.fitted, "fitted": world.fitted}
