"""How far to trust knowledge, chosen on the held-out end of the training part; each choice comes with its evidence.

Knowledge is generated for held-out users as it will be in the stream (at the start, then every `SPAN` events), and each
event is scored by the reference and by the fused scorer from what was known before it. Gain and half-life of evidence
are chosen with evidence that ages as the vectors do (`ranking.evidence = "stored"`), everything else with current
evidence, as it is served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.affinity import Affinity
from models.backbone import Backbone
from models.composition import Source, moments_at
from models.constraint import harmed, trust_region
from models.dataset import FloatArray, IntArray
from models.evaluation import ndcg, seen_pairs
from models.fusion import FusedScorer
from models.item_cache import ItemCache
from models.knowledge import KnowledgeModel
from models.llm import LanguageModel
from models.sequences import Sequences
from models.snapshots import SPAN, after, batch_of, before, exchanged, regular
from schemas.settings import LlmSettings

EPSILONS = (0.0, 0.05, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 20.0)  # of `models.constraint`; the last bounds nothing
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # events before an event: lower ends of buckets
Found = dict[str, float]


@dataclass(frozen=True, slots=True)
class Replay:
    """Events scored both ways, m of them.

    Args:
        user: (m,) user rows.
        length: (m,) events the user had before.
        age: (m,) events since the knowledge was generated.
        margin: (m,) log p_fused − log p_ref, nats, over the whole catalogue.
        ranks: (m, len(EPSILONS)) rank of the item among unseen ones within each trust radius; column 0 is the
            reference's.
        gains: (m, len(EPSILONS)) log p − log p_ref of the item within each trust radius, nats, unseen items only.
        unbounded: (m,) the same of the fused scores alone, without the reference's share and without a radius.
    """

    user: IntArray
    length: IntArray
    age: IntArray
    margin: FloatArray
    ranks: IntArray
    gains: FloatArray
    unbounded: FloatArray


@torch.no_grad()
def replay(
    sequences: Sequences, begin: IntArray, reference: Backbone, fused: FusedScorer, knowledge: KnowledgeModel | None,
    cache: ItemCache | None, llm: LanguageModel | None, settings: LlmSettings, limit: int = 4000, seed: int = 0,
    progress: Callable[[int, int], None] | None = None, epsilons: tuple[float, ...] = EPSILONS, span: int = SPAN,
    affinity: Affinity | None = None, source: Source | None = None, shuffled: bool = False,
) -> Replay:
    """Score events from row `begin` on of each user, generating knowledge every `span` events.

    Args:
        knowledge, cache, llm: None = fused scores without users' knowledge.
        source: makes knowledge in the place of these three.
        limit: about so many events; whole snapshots are drawn.
        affinity: None = without evidence.
        shuffled: give every event another one's vectors and evidence.
    """
    rows = drawn(sequences, begin, limit, span, seed)
    if shuffled:  # snapshots next to each other are of the same user
        rows = np.random.default_rng(seed).permutation(rows)
    side = fused.item_side()
    parts: list[tuple[np.ndarray, ...]] = []
    for at in range(0, len(rows), settings.batch):
        part = after(sequences, rows[at : at + settings.batch], reference.max_len, span)
        batch = batch_of(sequences, part, reference, fused, settings.history)
        vectors = None
        if knowledge is not None and cache is not None and llm is not None:
            vectors = knowledge(batch.user_hidden, batch.histories, cache, llm)
        if source is not None:
            vectors = source(moments_at(sequences, part.first, batch.user_hidden, source.items))
        if shuffled and vectors is not None:
            vectors = vectors.roll(1, 0)
        logits = fused.scores(fused.fuse(batch.fused_hidden, vectors)[batch.user, batch.slot], side)
        alone = logits
        if affinity is not None:
            # Vectors age; evidence is brought up to date at ranking.
            ends = exchanged(sequences, part.first, batch.user.numpy(), batch.rows) if shuffled else batch.rows
            current = affinity.evidence(before(sequences, ends, fused.max_len)), torch.zeros(len(ends))
            alone = fused.weigh(logits, logits, *current)
            logits = fused.weigh(logits, batch.ref_logits, *current)
        target = torch.from_numpy(sequences.item[batch.rows])
        margin = F.cross_entropy(batch.ref_logits, target, reduction="none") - F.cross_entropy(
            logits, target, reduction="none")
        low = sequences.offsets[np.searchsorted(sequences.offsets, batch.rows, "right") - 1]
        parts.append((
            np.searchsorted(sequences.offsets, batch.rows, "right") - 1, batch.rows - low,
            batch.rows - part.first[batch.user.numpy()], margin.double().numpy(),
            *_within(batch.ref_logits, logits, alone, target, seen_pairs(sequences, low, batch.rows), epsilons)))
        if progress is not None:
            progress(min(at + settings.batch, len(rows)), len(rows))
    if not parts:
        none, flat = np.zeros(0, np.int64), np.zeros((0, len(epsilons)))
        return Replay(none, none, none, np.zeros(0), flat.astype(np.int64), flat, np.zeros(0))
    return Replay(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def drawn(sequences: Sequences, begin: IntArray, limit: int, span: int, seed: int) -> IntArray:
    """Return the first rows of snapshots, about `limit` events of held-out users in all."""
    rows = regular(sequences, begin, span)
    held = sequences.offsets[1:] - begin
    each = int(np.median(held[held > 0])) if (held > 0).any() else 1  # in leave-one-out a user has one
    count = -(-limit // max(1, min(span, each)))
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def _within(
    ref: Tensor, fused: Tensor, alone: Tensor, target: Tensor, seen: tuple[Tensor, Tensor],
    epsilons: tuple[float, ...],
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return rank and gain in log-probability (nats) of targets within each trust radius, (m, len(epsilons)) each, and
    the gain (m,) that fused scores have `alone`.
    """
    each = torch.arange(len(target))
    for logits in (ref, fused, alone):
        logits[seen] = -torch.inf
    ref_logp, fused_logp = ref.log_softmax(-1), fused.log_softmax(-1)
    ranks, gains = [], []
    for epsilon in epsilons:
        logp, _, _ = trust_region(ref_logp, fused_logp, torch.full((len(target),), epsilon))
        own = logp[each, target]
        rank = (logp >= own[:, None]).sum(-1) - 1
        ranks.append(torch.where(own == -torch.inf, ref.shape[1], rank))
        gains.append(torch.where(own == -torch.inf, 0.0, own - ref_logp[each, target]))
    unbounded = torch.nan_to_num(alone.log_softmax(-1)[each, target] - ref_logp[each, target], nan=0.0)  # −∞ − (−∞)
    return torch.stack(ranks, 1).numpy(), torch.stack(gains, 1).double().numpy(), unbounded.double().numpy()


def margins_by_user(done: Replay) -> list[FloatArray]:
    """Return the margins (nats) of each user's events, in their order: what the judge's clip is chosen on."""
    order = np.argsort(done.user, kind="stable")
    ends = np.flatnonzero(np.diff(done.user[order])) + 1
    return [part for part in np.split(done.margin[order], ends) if len(part)]


def calibrate_epsilon(
    done: Replay, harm: float = 1.0, epsilons: tuple[float, ...] = EPSILONS,
) -> tuple[float, Found]:
    """Return the smallest trust radius (nats) with NDCG@10 within 1% of the best that surely harms few enough users.

    A user is harmed where the mean of his `gains` is below −δ; within ε = δ nobody is.

    Args:
        harm: harmed users allowed, as a share of those that fused scores harm alone (`Replay.unbounded`); 1 = all.
    """
    quality = [float(ndcg(done.ranks[:, column]).mean()) if len(done.ranks) else 0.0 for column in range(len(epsilons))]
    *shares, unbounded = _harmed(done)
    users = max(1, len(np.unique(done.user)))
    # Two standard errors: 90 held-out users of MovieLens-100K, 9% of them harmed, stood for 18% of the later ones.
    surely = [share + 2 * (share * (1 - share) / users) ** 0.5 for share in shares]
    allowed = [column for column, share in enumerate(surely)
               if harm >= 1 or share <= harm * unbounded or epsilons[column] == 0]
    enough = max(quality[column] for column in allowed) * 0.99
    chosen = next(column for column in allowed if quality[column] >= enough)
    found = {f"ndcg_at_10_epsilon_{epsilon:g}": value for epsilon, value in zip(epsilons, quality, strict=True)}
    found |= {f"harmed_epsilon_{epsilon:g}": value for epsilon, value in zip(epsilons, shares, strict=True)}
    return epsilons[chosen], found | {"harmed_unbounded": unbounded}


def _harmed(done: Replay) -> list[float]:
    """Return the share of users harmed within each radius, and by fused scores alone."""
    columns = [*done.gains.T, done.unbounded]
    if not len(done.user):
        return [0.0] * len(columns)
    _, user, events = np.unique(done.user, return_inverse=True, return_counts=True)
    return [float(harmed(-np.bincount(user, column) / events).mean()) for column in columns]


def calibrate_min_history(done: Replay, epsilon: float, epsilons: tuple[float, ...] = EPSILONS) -> tuple[int, Found]:
    """Return the shortest history from which on knowledge does no harm that noise would not explain.

    That is: in no bucket of longer histories is the mean NDCG@10 gain below zero by two standard errors. Buckets of
    fewer than 30 events are passed over.
    """
    gain = ndcg(done.ranks[:, epsilons.index(epsilon)]) - ndcg(done.ranks[:, 0])
    evidence: Found = {}
    shortest = LENGTHS[0]
    for at, low in enumerate(LENGTHS):
        high = LENGTHS[at + 1] if at + 1 < len(LENGTHS) else np.inf
        inside = (done.length >= low) & (done.length < high)
        if inside.sum() < 30:
            continue
        mean, error = float(gain[inside].mean()), float(gain[inside].std() / np.sqrt(inside.sum()))
        evidence[f"ndcg_gain_history_{low}"] = mean
        if mean < -2 * error and at + 1 < len(LENGTHS):
            shortest = LENGTHS[at + 1]
    return shortest, evidence
