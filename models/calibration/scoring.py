"""Scores the held-out end of the training part with and without knowledge; the trust calibration reads the scores.

Knowledge is generated for held-out users as in the stream: at the start, then every `SPAN` events. The reference and
the fused scorer predict each event from what was known before it. The vectors age between refreshes; the evidence is
current, as in serving. The trust region is applied after removing the items a user has had, as in serving.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.data.dataset import FloatArray, IntArray
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.reference import Reference
from models.knowledge.sources import Source, moments_at
from models.scorers.fusion import FusedScorer
from models.scorers.ranks import seen_pairs
from models.scorers.snapshots import SPAN, after, batch_of, before, regular
from models.trust.radius import EPSILONS, ScoredEvents
from models.trust.region import log_probabilities, trust_region
from schemas.settings import LlmSettings


@torch.no_grad()
def score_events(
    sequences: Sequences, begin: IntArray, reference: Reference, fused: FusedScorer, source: Source | None,
    settings: LlmSettings, limit: int = 4000, seed: int = 0, progress: Callable[[int, int], None] | None = None,
    epsilons: tuple[float, ...] = EPSILONS, span: int = SPAN, affinity: Ease | None = None,
    shuffled: bool = False,
) -> ScoredEvents:
    """Score each user's events from row `begin` on, with knowledge generated every `span` events.

    Args:
        source: generates user knowledge; None = fused scores without knowledge.
        limit: approximate number of events; whole snapshots are sampled.
        affinity: the closed form that the fused scores add; None = they add none.
        shuffled: give every event another user's vectors.
    """
    rows = draw_snapshots(sequences, begin, limit, span, seed)
    if shuffled:  # adjacent snapshots belong to the same user
        rows = np.random.default_rng(seed).permutation(rows)
    side = fused.item_side()
    parts: list[tuple[np.ndarray, ...]] = []
    for at in range(0, len(rows), settings.batch):
        part = after(sequences, rows[at : at + settings.batch], reference.backbone.max_len, span)
        batch = batch_of(sequences, part, reference.backbone, fused, settings.history)
        vectors = None
        if source is not None:
            vectors = source(moments_at(sequences, part.first, batch.user_hidden, source.items))
        if shuffled and vectors is not None:
            vectors = vectors.roll(1, 0)
        logits = fused.scores(fused.fuse(batch.fused_hidden, vectors)[batch.user, batch.slot], side)
        alone = logits
        histories = before(sequences, batch.rows, fused.max_len)
        if affinity is not None:  # vectors age; ranking recomputes the evidence
            current = affinity.evidence(histories), torch.zeros(len(histories))
            alone = fused.weigh(logits, logits, *current)
            logits = fused.weigh(logits, batch.ref_logits, *current)
        by_behaviour = reference.weigh(batch.ref_logits, histories)
        target = torch.from_numpy(sequences.item[batch.rows])
        margin = F.cross_entropy(by_behaviour, target, reduction="none") - F.cross_entropy(
            logits, target, reduction="none")
        low = sequences.offsets[np.searchsorted(sequences.offsets, batch.rows, "right") - 1]
        parts.append((
            np.searchsorted(sequences.offsets, batch.rows, "right") - 1, batch.rows - low,
            batch.rows - part.first[batch.user.numpy()], margin.double().numpy(),
            *_within(by_behaviour, logits, alone, target, seen_pairs(sequences, low, batch.rows), epsilons)))
        if progress is not None:
            progress(min(at + settings.batch, len(rows)), len(rows))
    if not parts:
        none, flat = np.zeros(0, np.int64), np.zeros((0, len(epsilons)))
        return ScoredEvents(none, none, none, np.zeros(0), flat.astype(np.int64), flat, np.zeros(0))
    return ScoredEvents(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def draw_snapshots(sequences: Sequences, begin: IntArray, limit: int, span: int, seed: int) -> IntArray:
    """Return the first rows after sampled snapshots that cover about `limit` held-out events."""
    rows = regular(sequences, begin, span)
    held = sequences.offsets[1:] - begin
    each = int(np.median(held[held > 0])) if (held > 0).any() else 1  # leave-one-out has one per user
    count = -(-limit // max(1, min(span, each)))
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def _within(
    ref: Tensor, fused: Tensor, alone: Tensor, target: Tensor, seen: tuple[Tensor, Tensor],
    epsilons: tuple[float, ...],
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return the targets' ranks and log-probability gains (nats) within each trust radius, (m, len(epsilons)) each.

    The third result is the gain (m,) of the scores `alone`, without a radius.
    """
    each = torch.arange(len(target))
    for logits in (ref, fused, alone):
        logits[seen] = -torch.inf
    ref_logp, fused_logp = log_probabilities(ref), log_probabilities(fused)
    ranks, gains = [], []
    for epsilon in epsilons:
        logp, _, _ = trust_region(ref_logp, fused_logp, torch.full((len(target),), epsilon))
        own = logp[each, target]
        rank = (logp >= own[:, None]).sum(-1) - 1
        ranks.append(torch.where(own == -torch.inf, ref.shape[1], rank))
        gains.append(torch.where(own == -torch.inf, 0.0, own - ref_logp[each, target]))
    unbounded = torch.nan_to_num(log_probabilities(alone)[each, target] - ref_logp[each, target], nan=0.0)  # −∞ − (−∞)
    return torch.stack(ranks, 1).numpy(), torch.stack(gains, 1).double().numpy(), unbounded.double().numpy()


