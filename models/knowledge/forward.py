"""One pass over moments and the events after them: what training computes losses from, and what judges read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.compute.devices import Place
from models.data.dataset import IntArray
from models.data.sequences import Sequences, tensors
from models.knowledge.composition import Composed
from models.knowledge.sources import moments_at
from models.scorers.backbone import ItemSide
from models.scorers.snapshots import SPAN, after, slots_at


@dataclass(frozen=True, slots=True)
class Passed:
    """B moments and the m events after them.

    Args:
        hidden: (m, d) the backbone's states, without knowledge.
        where: (m,) moment of each event.
        vectors: (B, K, d) knowledge of the moments; None = the composition has none.
        side: the catalogue.
        reference: (m, n) the reference's logits.
        target: (m,) item rows, on the device; `rows`: the events' rows of the sequences.
    """

    hidden: Tensor
    where: Tensor
    vectors: Tensor | None
    side: ItemSide
    reference: Tensor
    target: Tensor
    rows: IntArray


def span_of(model: Composed) -> int:
    """Return the number of events after a moment: a window reaches back to the moment, so half of it is context."""
    return min(SPAN, max(1, model.reference.max_len // 2))


def run(model: Composed, sequences: Sequences, moments: IntArray, here: Place) -> Passed:
    """Score the events after the moments before rows (B,) up to the fusion."""
    device = here.device
    part = after(sequences, moments, model.reference.max_len, span_of(model))
    tokens, where, slots, predicted = tensors(sequences, part)
    tokens, where, slots = tokens.to(device), where.to(device), slots.to(device)
    rows = predicted.numpy()
    target = torch.from_numpy(sequences.item[rows]).to(device)
    with torch.no_grad():
        training, _ = model.reference.training, model.reference.eval()
        states = model.reference(tokens)
        reference = model.reference.scores(states[where, slots])
        model.reference.train(training)
    vectors = None
    if model.source is not None:
        state = states[torch.arange(len(part), device=device), slots_at(sequences, part)]
        vectors = model.knowledge(moments_at(sequences, part.first, state, model.source.items))
    side = model.backbone.item_side()
    return Passed(model.backbone(tokens, side)[where, slots], where, vectors, side, reference, target, rows)


@contextmanager
def untempered(model: Composed) -> Iterator[None]:
    """Set the scales of the scorers' logits to 1 inside the block, as when they were trained.

    `models.scorers.training.temper` chose the scales on held-out events. On the events a scorer was trained with they
    make it less sure than it has reason to be, and the cheapest way to a smaller loss there would be to undo them.
    """
    scales = [scorer.scale for scorer in (model.backbone, model.reference)]
    before = [scale.clone() for scale in scales]
    for scale in scales:
        scale.fill_(1.0)
    try:
        yield
    finally:
        for scale, value in zip(scales, before, strict=True):
            scale.copy_(value)
