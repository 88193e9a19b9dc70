"""Chooses which item knowledge counts beside behaviour, and how much. No part is taken on faith.

Parts are added one after the other, the cheapest first. The weight of a part is searched from 0 up, with the gain of
the closed form, by NDCG@10 on one half of the held-out users; the other half says what the part adds to those before
it. The halves also change places for that, which gives twice as many events that did not choose what they measure. A
part whose 95% interval holds 0 is switched off (`fit.parts` = auto). The reference is among the candidates, so the
choice never ranks below it on the events that choose. On data whose texts say little of what people choose, words at a
fixed weight cost 8% of the closed form's NDCG@10.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.calibration.held_out import UNSEEN, HeldOut
from models.calibration.reference import best_gain, best_half_life, quality
from models.data.dataset import IntArray
from models.evidence.ease import ClosedForm, Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.evidence.reference import Reference
from models.measuring.intervals import paired_interval
from models.measuring.metrics import ndcg
from models.scorers.fusion import FusedScorer
from schemas.calibration import Worth

NAMES = ("words", "encoder", "written")  # parts of the closed form, the cheapest first
STEPS = (0.3, 0.6, 1.2, 2.4, 4.8)  # weights of a part; the search stops when one is worse than the last
SHARES = (0.0, 0.3, 0.5, 0.7, 0.9)  # r of the reference's transformer beside the one that reads item texts
SEARCHED = 8000  # items that a search takes; the closed form of all 12,101 on Beauty takes more than 3 times as long
UNSEEN_ITEMS = 500  # of them without users


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the fused scores τ ((1 − r) s + r s_transformer + g z).

    Args:
        affinity: the closed form with item knowledge, whose evidence is z.
        gain, share, temperature: g, r and τ.
    """

    affinity: Ease
    gain: float
    share: float = 1.0
    temperature: float = 1.0

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of the reference's transformer and of the one that reads item texts."""
        return self.share, 1 - self.share

    def put(self, fused: FusedScorer) -> None:
        """Set a scorer's weights."""
        fused.evidence_gain.fill_(self.gain)
        fused.reference_share.fill_(self.share)
        fused.temperature.fill_(self.temperature)


def worth(
    name: str, events: Sequence[HeldOut], ranks: Sequence[IntArray], before: Sequence[IntArray], use: str,
    weight: float,
) -> Worth:
    """Return what a part adds, from the ranks (m,) of the same events with and without it.

    Args:
        events, ranks, before: of disjoint sets of users.
        use: "auto" = used if it pays, "on" = whenever it has a weight.
    """
    gain = np.concatenate([ndcg(with_it) - ndcg(without) for with_it, without in zip(ranks, before, strict=True)])
    adds, low, high = paired_interval(np.concatenate([part.user for part in events]), gain)
    return Worth(part=name, adds=adds, low=low, high=high, used=weight > 0 and (low > 0 or use == "on"), weight=weight,
                 events=len(gain))


def searched(counts: IntArray, known: ItemKnowledge) -> IntArray | None:
    """Return the items (m,) that weights are searched on: the most popular ones and some without users; None = all.

    Args:
        counts: (n,) events of each item.
    """
    if len(counts) <= SEARCHED:
        return None
    unseen = np.flatnonzero((counts == 0) & np.array([bool(text) for text in known.joined()]))
    unseen = np.random.default_rng(0).permutation(unseen)[:UNSEEN_ITEMS]
    popular = np.argsort(-counts, kind="stable")[: SEARCHED - len(unseen)]
    return np.union1d(popular[counts[popular] > 0], unseen)


def within(events: HeldOut, items: IntArray | None) -> HeldOut:
    """Return the events whose targets are among `items`, with the transformer's scores over these items only."""
    if items is None:
        return events
    inside = np.zeros(events.scores[0].shape[1], dtype=bool)
    inside[items] = True
    rows = np.flatnonzero(inside[events.target.numpy()])
    at, outside = torch.from_numpy(rows), torch.from_numpy(~inside)
    return HeldOut(events.user[rows], events.target[at], events.histories[rows], tuple(
        scores[at].masked_fill_(outside, UNSEEN) for scores in events.scores[:1]))


def choose_parts(
    form: ClosedForm, known: ItemKnowledge, counts: IntArray, reference: Reference, halves: tuple[HeldOut, HeldOut],
    use: str = "auto", names: Sequence[str] = NAMES, step: Callable[[int, int], None] | None = None,
) -> tuple[Parts, list[Worth]]:
    """Return the weights of item knowledge in the closed form, and what each part adds.

    Args:
        form: the closed form on rows before the held-out ones.
        counts: (n,) events of each item in these rows.
        halves: held-out events that choose, and those that judge.
        use: see `worth`.
        names: parts to try.
        step: called with the number of parts done and their total.
    """
    names = [name for name in names if known.has(name)]
    only = searched(counts, known)
    both = [within(half, only) for half in halves]
    if not all(map(len, both)):
        return Parts(), []
    search, half_life = form.restricted(only), reference.affinity.half_life
    parts, now = Parts(), _tried(search, Parts(), half_life, both)
    out = []
    for done, name in enumerate(names):
        began = time.monotonic()
        best, weights = [now, now], [0.0, 0.0]
        # The words of the joined texts take the place of the texts' own, so they begin at the weight of those.
        least = parts.words if name == "written" else 0.0
        for weight in (weight for weight in STEPS if weight >= least):
            changed = replace(parts, **({"written": weight, "words": 0.0} if name == "written" else {name: weight}))
            found = _tried(search, changed, half_life, both)
            better = [found.quality[half] > best[half].quality[half] for half in (0, 1)]
            if not any(better):
                break
            for half in (0, 1):
                if better[half]:
                    best[half], weights[half] = found, weight
        row = worth(name, both, [best[1].judged(both, 0, 1), best[0].judged(both, 1, 0)],
                    [now.judged(both, 0, 1), now.judged(both, 1, 0)], use, weights[0])
        out.append(row.model_copy(update={"seconds": time.monotonic() - began, "calls": known.calls(name)}))
        if row.used:
            parts, now = best[0].parts, best[0]
        if step is not None:
            step(done + 1, len(names))
    return parts, out


@dataclass(frozen=True, slots=True)
class _Tried:
    """A closed form with the best gain on each half of the held-out events, and the NDCG@10 there."""

    parts: Parts
    affinity: Ease
    quality: tuple[float, float]
    gain: tuple[float, float]

    def judged(self, halves: Sequence[HeldOut], half: int, chosen: int) -> IntArray:
        """Return the ranks on a half with the gain that the half `chosen` chose."""
        events = halves[half]
        return events.ranks(_alone(events), events.evidence(self.affinity), (self.gain[chosen],))[0]


def _tried(form: ClosedForm, parts: Parts, half_life: float, halves: Sequence[HeldOut]) -> _Tried:
    affinity = replace(form.solve(parts), half_life=half_life)
    (first, gain), (second, other) = (
        best_gain(events, _alone(events), events.evidence(affinity)) for events in halves)
    return _Tried(parts, affinity, (first, second), (gain, other))


def _alone(events: HeldOut) -> tuple[float, ...]:
    """Return the shares with which the first scorer alone counts."""
    return (1.0, *[0.0] * (len(events.scores) - 1))


def choose_weights(
    affinity: Ease, reference: Reference, halves: tuple[HeldOut, HeldOut], use: str = "auto",
    shares: Sequence[float] = SHARES, evidence: bool = True,
) -> tuple[Weights, Weights, list[Worth], dict[str, float]]:
    """Return the weights of the fused scores without and with user vectors, what item texts add, and figures.

    User vectors enter through the transformer that reads item texts, so with them it always has a share.

    Args:
        affinity: the closed form with the chosen parts.
        halves: events with the scores of both transformers.
        use: see `worth`.
        shares: candidates for r.
        evidence: False = the fused scores add no closed form.
    """
    choosing, judging = halves
    best = Weights(reference.affinity, reference.gain, 1.0, reference.temperature)
    if not evidence:
        best = Weights(Ease.none(len(affinity.neighbours)), 0.0)
    if not len(choosing) or not len(judging):
        return best, replace(best, share=shares[-1]), [], {}
    without = quality(choosing.ranks(best.shares, choosing.evidence(best.affinity), (best.gain,))[0])
    found = without
    if affinity.parts and evidence:
        half_life, (ranked, gain) = best_half_life(choosing, best.shares, affinity, reference.affinity.half_life)
        if ranked > found:
            found, best = ranked, Weights(replace(affinity, half_life=half_life), gain)
    gathered, there = choosing.evidence(best.affinity), judging.evidence(best.affinity)
    tried = []
    for share in shares:
        near = [best.gain * factor for factor in (0.5, 0.7, 1.0, 1.4, 2.0)] if best.gain else [0.0]
        tried.append((*best_gain(choosing, (share, 1 - share), gathered, near), share))
    top, gain, share = max(tried)
    texts = replace(best, share=share, gain=gain)
    row = worth("features", [judging], judging.ranks(texts.shares, there, (gain,)),
                judging.ranks(best.shares, there, (best.gain,)), use, 1 - share if top > found else 0.0)
    if row.used:
        found, best = top, texts
    tempered = []
    for weights in (best, texts):
        temperature, _ = choosing.temperature(weights.shares, gathered, weights.gain)
        tempered.append(replace(weights, temperature=temperature))
    return tempered[0], tempered[1], [row], {
        "fused_ndcg_at_10_chosen": found, "fused_ndcg_at_10_reference": without, "fused_gain": best.gain,
        "fused_half_life": best.affinity.half_life, "fused_reference_share": best.share,
        "fused_temperature": tempered[0].temperature,
        **{f"fused_{name}": getattr(best.affinity.parts, name) for name in NAMES}}


def behaviour_worth(reference: Reference, judging: HeldOut) -> Worth:
    """Return the reference's own NDCG@10 and its interval, as the first row of the table."""
    ranks = judging.ranks(_alone(judging), judging.evidence(reference.affinity), (reference.gain,))[0]
    adds, low, high = paired_interval(judging.user, ndcg(ranks))
    return Worth(part="behaviour", adds=adds, low=low, high=high, used=True, weight=1.0, events=len(judging))
