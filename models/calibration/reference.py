"""Chooses how much the closed form counts beside the transformer, on held-out events that neither was trained on.

The criterion is NDCG@10; then a temperature gives the combination the highest likelihood, which keeps the ranking.
Searches go on until the best value is inside: on Beauty grids once ended at a gain of 32 and a half-life of 6, and both
were chosen. The smallest gain within half a standard error was tried, too: where the transformer knows the held-out
items it leaves the closed form out, and with it what the closed form knows of new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.calibration.held_out import HeldOut, halves
from models.data.dataset import IntArray
from models.data.fold import Fold
from models.evidence.ease import Ease
from models.evidence.reference import Reference
from models.measuring.metrics import ndcg
from models.scorers.backbone import Backbone
from models.scorers.fusion import Evidence

HALF_LIFE = 6.0  # h, in items of the history; the search starts here and doubles or halves it while that is better
SHORTEST, LONGEST = 0.375, 384.0  # h at which only the newest item counts, and at which all of a history count the same
GAINS = (0.0, 1.0, 2.0, 4.0, 7.0, 10.0, 15.0, 22.0, 32.0, 46.0, 66.0, 95.0, 140.0)  # g
LIMIT = 6000  # held-out events of one half of the users; nearly all of Beauty's
LARGEST = 1e5  # a gain at which the transformer only breaks ties
FURTHER = 1.45  # from one gain to the next beyond the grid


def quality(ranks: IntArray) -> float:
    """Return NDCG@10 of ranks (m,)."""
    return float(ndcg(ranks).mean()) if len(ranks) else 0.0


def best_gain(
    events: HeldOut, shares: Sequence[float], evidence: Evidence, gains: Sequence[float] = GAINS,
) -> tuple[float, float]:
    """Return the highest NDCG@10 and its gain; larger gains are tried while the largest one is the best."""
    tried = list(gains)
    found = [quality(ranks) for ranks in events.ranks(shares, evidence, tried)]
    while len(found) > 1 and int(np.argmax(found)) == len(found) - 1 and tried[-1] < LARGEST:
        tried.append(tried[-1] * FURTHER)
        found.append(quality(events.ranks(shares, evidence, tried[-1:])[0]))
    best = int(np.argmax(found))  # the smallest of equals
    return found[best], tried[best]


def best_half_life(
    events: HeldOut, shares: Sequence[float], affinity: Ease, start: float = HALF_LIFE,
) -> tuple[float, tuple[float, float]]:
    """Return the half-life with the highest NDCG@10, and that NDCG@10 with its gain."""
    found: dict[float, tuple[float, float]] = {}

    def look(half_life: float) -> float:
        if half_life not in found:
            found[half_life] = best_gain(events, shares, events.evidence(replace(affinity, half_life=half_life)))
        return found[half_life][0]

    best = start
    for factor in (2.0, 0.5):
        while SHORTEST <= best * factor <= LONGEST and look(best * factor) > look(best):
            best *= factor
    look(best)
    return best, found[best]


def fit_reference(fold: Fold, backbone: Backbone, affinity: Ease, seed: int = 0) -> tuple[Reference, dict[str, float]]:
    """Return the calibrated reference from the transformer and the closed form, both fitted without held-out events.

    One half of the held-out users chooses; see `models.calibration.held_out`.
    """
    begin, _ = halves(fold.begin, fold.sequences.offsets, seed)
    return calibrate_reference(backbone, affinity, HeldOut.of(fold.sequences, begin, (backbone,), LIMIT, seed))


def calibrate_reference(backbone: Backbone, affinity: Ease, events: HeldOut) -> tuple[Reference, dict[str, float]]:
    """Return the transformer and the closed form with the weights that rank held-out events best, and figures.

    Args:
        affinity: fitted on the rows before the held-out ones, without item knowledge.
        events: with the transformer's scores first.
    """
    shares = (1.0, *[0.0] * (len(events.scores) - 1))
    if not len(events):
        return Reference(backbone, affinity), {}
    half_life, (ranked, gain) = best_half_life(events, shares, affinity)
    chosen = replace(affinity, half_life=half_life)
    evidence = events.evidence(chosen)
    temperature, nll = events.temperature(shares, evidence, gain)
    alone = quality(events.ranks(shares, evidence, (0.0,))[0])
    return Reference(backbone, chosen, gain, temperature), {
        "reference_gain": gain, "reference_half_life": half_life, "reference_temperature": temperature,
        "reference_ndcg_at_10_chosen": ranked, "transformer_ndcg_at_10": alone, "reference_nll_chosen": nll}
