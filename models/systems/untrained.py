"""Rows without a trained backbone: popularity, a walk on the graph of items, the closed form alone.

Their few settings are chosen like everyone's: by NDCG@10 on the held-out rows of the training part, from statistics of
the rows before. Where the protocol extends scorers to the held-out rows, so are the statistics. A temperature gives the
scores the highest held-out likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.item_knowledge import BEHAVIOUR, ItemKnowledge, Parts
from models.measuring.metrics import ndcg
from models.measuring.outcomes import Outcome, Ranks
from models.scorers.ranks import target_ranks
from models.scorers.snapshots import before
from models.scorers.untrained import Popularity, Scores, Walk, added
from models.systems.context import Context, Trained
from schemas.errors import DataError

UNTRAINED = ("popularity", "walk", "evidence")  # kinds of backbone
JUDGED = 4000  # held-out events that choose
HALF_LIVES = (0.75, 1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 384.0)  # h, in items of the history; the last: all alike
TEMPERATURES = tuple(2.0**power for power in np.arange(-2.0, 14.5, 0.5).tolist())
# Weights of item knowledge in the rows with a part; not tuned per data set, so that the rows show what a part does.
PARTS = {
    None: BEHAVIOUR, "words": Parts(words=0.6), "encoder": Parts(words=0.6, encoder=0.6),
    "written": Parts(written=0.6, encoder=0.6)}


def train_untrained(kind: str, control: str | None, context: Context) -> Trained:
    """Return a row by its kind of backbone: "popularity", "walk" or "evidence", the last with a part of `PARTS`."""
    n_items = context.split.fold.n_items

    def candidates(sequences: Sequences) -> list[Scores]:
        if kind == "popularity":
            return [Popularity.fit(sequences, n_items)]
        if kind == "walk":
            return list(Walk.candidates(sequences, n_items))
        popular = Popularity.fit(sequences, n_items)
        solved = closed_form(context, PARTS[control], sequences)
        return [added([(1e-6, popular), (1.0, Evident(replace(solved, half_life=h)))]) for h in HALF_LIVES]

    ranks, about = rank_best(context, candidates)
    return Trained(lambda _: Outcome(ranks), about)


def closed_form(context: Context, parts: Parts, sequences: Sequences) -> Ease:
    """Return the closed form with these parts on a training part, solved once.

    Raises:
        DataError: a part needs knowledge of items that is not there.
    """
    fold = context.split.fold
    name = "extended closed form" if sequences is fold.sequences else "closed form"
    if not parts:
        return context.once(name, lambda: Ease.fit(sequences, fold.n_items))
    # The form keeps the similarities, which take longer than the solution.
    # Words alone need no sentence encoder.
    known = context.known() if parts.encoder or parts.written else ItemKnowledge(context.dataset.texts)
    if parts.written and not known.has("written"):
        raise DataError("nothing is written of these items; `freshet describe --items` or a file knowledge/items.jsonl "
                        "beside the data says what they are")
    if parts.encoder and not known.has("encoder"):
        raise DataError("there is no sentence encoder: FRESHET_ITEMS_ENCODER is 'none'")
    return context.once(f"{name}, {parts}", lambda: Ease.fit(sequences, fold.n_items, known, parts))


class Evident:
    """The closed form's evidence as scores of all items."""

    def __init__(self, affinity: Ease) -> None:
        self.affinity = affinity

    def __call__(self, histories: IntArray) -> Tensor:
        """Return the scores (m, n_items)."""
        found = self.affinity.evidence(histories)
        out = torch.zeros(len(histories), len(self.affinity.neighbours))
        return out.scatter_add_(1, found.items.clamp(min=0), torch.where(found.items >= 0, found.weights, 0.0))


def rank_best(context: Context, candidates: Callable[[Sequences], Sequence[Scores]]) -> tuple[Ranks, dict[str, float]]:
    """Choose among candidates on held-out events, and rank the test events.

    Args:
        candidates: returns scorers fitted on sequences, always in the same order.
    """
    split, fold = context.split, context.split.fold
    first = np.repeat(fold.begin, fold.sequences.lengths())
    rows = np.flatnonzero((np.arange(len(fold.sequences.item)) >= first) & fold.sequences.with_history())
    rows = np.sort(np.random.default_rng(context.settings.fit.seed).permutation(rows)[:JUDGED])
    tried = candidates(fold.training())
    found = [float(ndcg(_ranked(scores, fold.sequences, rows, context)[0]).mean()) if len(rows) else 0.0
             for scores in tried]
    best = int(np.argmax(found))
    temperature = _temperature(tried[best], fold.sequences, rows, context)
    scores = candidates(fold.sequences)[best] if split.extends else tried[best]
    test = split.rows()
    return Ranks(test, *_ranked(scores, split.test, test, context, temperature)), {
        "ndcg_at_10": found[best], "chosen": float(best), "temperature": temperature}


def _ranked(
    scores: Scores, sequences: Sequences, rows: IntArray, context: Context, temperature: float = 1.0,
) -> tuple[IntArray, np.ndarray]:
    return target_ranks(
        lambda part: temperature * scores(before(sequences, rows[part.numpy()], context.max_len)),
        context.split.fold.n_items, sequences, rows)


def _temperature(scores: Scores, sequences: Sequences, rows: IntArray, context: Context) -> float:
    some = rows[:: max(1, len(rows) // 500)]
    if not len(some):
        return 1.0
    logits = scores(before(sequences, some, context.max_len))
    target = torch.from_numpy(sequences.item[some])
    loss = [torch.nn.functional.cross_entropy(t * logits, target).item() for t in TEMPERATURES]
    return TEMPERATURES[int(np.argmin(loss))]
