"""Calibrates the reference, then the fused scores, on the held-out events of a fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.calibration.held_out import HeldOut, halves
from models.calibration.parts import NAMES, SHARES, Weights, behaviour_worth, choose_parts, choose_weights
from models.calibration.reference import LIMIT, fit_reference
from models.data.dataset import IntArray
from models.data.fold import Fold
from models.evidence.ease import ClosedForm
from models.evidence.item_knowledge import ItemKnowledge
from models.evidence.reference import Reference
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from schemas.calibration import Worth

Once = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True, slots=True)
class CalibratedScores:
    """What the events of one half of the held-out users chose, and what those of the other half measured.

    Args:
        reference: behaviour alone.
        weights: of the fused scores without user vectors.
        with_vectors: of the fused scores that user vectors are trained on.
        parts: what each part adds, behaviour first.
        judging: (users,) first held-out row of the users that chose nothing; the others have none.
        metrics: the choices and their NDCG@10.
    """

    reference: Reference
    weights: Weights
    with_vectors: Weights
    parts: list[Worth]
    judging: IntArray
    metrics: dict[str, float]


def make(_: str, function: Callable[[], Any]) -> Any:
    """Call the function; the place of a store of results by name."""
    return function()


def calibrate_scores(
    fold: Fold, known: ItemKnowledge, backbone: Backbone, trained: FusedScorer, *, seed: int = 0, use: str = "auto",
    parts: Sequence[str] | None = NAMES, bounded: bool = True, once: Once = make,
    step: Callable[[int, int], None] | None = None,
) -> CalibratedScores:
    """Fit the closed forms on the fold's training rows and choose all weights of the scores on its held-out rows.

    Args:
        backbone, trained: the transformers, of the reference and with item texts.
        use: "auto" = only parts that pay, "on" = those that may.
        parts: parts of the closed form that item knowledge may have; () = behaviour alone, None = no closed form in
            the fused scores.
        bounded: False = the fused scores have no share of the reference's transformer.
        once: returns the stored object for a name, or calls a function to make it.
        step: called with steps done and their total.
    """
    training = fold.training()
    form = ClosedForm(training, fold.n_items, known)
    plain = once("closed form", form.solve)
    reference, metrics = once("reference", lambda: fit_reference(fold, backbone, plain, seed))
    begins = halves(fold.begin, fold.sequences.offsets, seed)
    choosing, judging = (HeldOut.of(fold.sequences, begin, (backbone, trained), LIMIT, seed) for begin in begins)
    chosen, table = once(f"parts {parts}, {use}", lambda: choose_parts(
        form, known, np.bincount(training.item, minlength=fold.n_items), reference, (choosing, judging), use,
        parts or (), step))
    affinity = once(f"closed form, {chosen}", lambda: form.solve(chosen)) if chosen else plain
    weights, with_vectors, rows, found = choose_weights(
        affinity, reference, (choosing, judging), use, SHARES if bounded else SHARES[:1], parts is not None)
    if not weights.affinity.parts:  # the search on a part of the catalogue misled
        table = [row.model_copy(update={"used": False}) for row in table]
    return CalibratedScores(
        reference, weights, with_vectors, [behaviour_worth(reference, judging), *table, *rows], begins[1],
        metrics | found)
