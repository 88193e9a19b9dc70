"""Users whose knowledge is judged: snapshots at which it is generated, and the events after them, scored both ways.

For each event there are three negative log-likelihoods (nats, whole catalogue): ℓ⁺ of the fused scorer, ℓ⁰ of the fused
scorer without the language model's vectors, and ℓʳ of the reference. The judge's margin ℓʳ − ℓ⁺ is the value of all
knowledge. CoCo's contradiction (arXiv 2510.14257) is ℓ⁺ − ℓ⁰ > γ: it compares the same scorer with and without the
vectors, so it measures only what the language model is responsible for. On MovieLens-100K margins have a standard
deviation of 0.50 nats, and the vectors' part one of 0.09; the rest comes from item texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.data.dataset import FloatArray, IntArray
from models.data.sequences import Sequences
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.scorers.fusion import Evidence
from models.scorers.snapshots import SPAN, SnapshotBatch, after, batch_of, before
from models.serving.ranking_model import RankingModel
from models.systems.lwgr.knowledge import KnowledgeModel


@dataclass(frozen=True, slots=True)
class JudgedMoments:
    """A batch of snapshots with the evidence from their histories.

    Args:
        batch: B snapshots and the m events after them.
        evidence: (m, M) for each event, current or from the snapshot, see `FrozenModels.current_evidence`.
        age: (m,) events since the evidence was computed.
        by_behaviour: (m, n) logits of the reference.
    """

    batch: SnapshotBatch
    evidence: Evidence
    age: Tensor
    by_behaviour: Tensor


@dataclass(frozen=True, slots=True)
class FrozenModels:
    """The frozen models that generate and judge knowledge.

    Args:
        history: H, number of items the language model reads.
        batch: users per forward pass.
        current_evidence: judge each event with the evidence just before it, as ranking does by default; otherwise with
            the aging evidence from the snapshot (`ranking.evidence` = "stored").
    """

    ranking: RankingModel
    knowledge: KnowledgeModel
    cache: ItemCache
    llm: LanguageModel
    history: int
    batch: int
    current_evidence: bool = True

    def freeze(self) -> FrozenModels:
        """Disable gradients and dropout in all models, and return self."""
        for module in (self.ranking.reference, self.ranking.fused, self.knowledge):
            module.eval().requires_grad_(False)
        return self

    def vectors(self, at: JudgedMoments) -> Tensor:
        """Return knowledge (B, K, d) for snapshots, from the current language model."""
        return self.knowledge(at.batch.user_hidden, at.batch.histories, self.cache, self.llm)

    def logits(self, at: JudgedMoments, vectors: Tensor | None) -> Tensor:
        """Return fused logits (m, n) for the events after snapshots; None = without the language model's vectors."""
        fused, batch = self.ranking.fused, at.batch
        side = tuple(part.detach() for part in fused.item_side())
        scores = fused.scores(fused.fuse(batch.fused_hidden, vectors)[batch.user, batch.slot], (side[0], side[1]))
        return fused.weigh(scores, batch.ref_logits, at.evidence, at.age)


@dataclass(frozen=True, slots=True)
class Cohort:
    """s snapshots of users.

    Args:
        sequences: the users' events.
        rows: (s,) row of the first event after each snapshot; it and the following events are judged.
        span: maximum number of judged events per snapshot.
    """

    sequences: Sequences
    rows: IntArray
    span: int = SPAN

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def users(self) -> IntArray:
        """The user of each snapshot, (s,)."""
        return np.searchsorted(self.sequences.offsets, self.rows, "right") - 1

    def __getitem__(self, chosen: IntArray | slice) -> Cohort:
        return Cohort(self.sequences, self.rows[chosen], self.span)

    def moments(self, parts: FrozenModels, chosen: IntArray) -> JudgedMoments:
        """Return the snapshots `chosen` as input for `FrozenModels`."""
        ranking, first = parts.ranking, self.rows[chosen]
        windows = after(self.sequences, first, ranking.max_len, self.span)
        batch = batch_of(self.sequences, windows, ranking.reference, ranking.fused, parts.history)
        age = torch.from_numpy(batch.rows - first[batch.user.numpy()])
        histories = before(self.sequences, batch.rows, ranking.max_len)
        by_behaviour = ranking.behaviour.weigh(batch.ref_logits, histories)
        if parts.current_evidence:
            return JudgedMoments(batch, ranking.affinity.evidence(histories), torch.zeros_like(age), by_behaviour)
        gathered = ranking.affinity.evidence(before(self.sequences, first, ranking.max_len))
        return JudgedMoments(batch, gathered[batch.user], age, by_behaviour)

    def targets(self, at: JudgedMoments) -> Tensor:
        """Return the item rows (m,) of the events after snapshots."""
        return torch.from_numpy(self.sequences.item[at.batch.rows])

    def chunks(self, size: int) -> Iterator[IntArray]:
        """Yield all snapshots, `size` at a time."""
        for at in range(0, len(self), size):
            yield np.arange(at, min(at + size, len(self)))


@dataclass(frozen=True, slots=True)
class Margins:
    """m judged events of a cohort.

    Args:
        snapshot: (m,) index of the snapshot in the cohort, ascending; events of one snapshot are in order of time.
        user: (m,) users.
        value: (m,) ℓʳ − ℓ⁺, nats.
        harm: (m,) ℓ⁺ − ℓ⁰, nats.
    """

    snapshot: IntArray
    user: IntArray
    value: FloatArray
    harm: FloatArray


def cohort_of(histories: Sequence[Sequence[int]], first: Sequence[int], span: int = SPAN) -> Cohort:
    """Return a cohort from users' histories of item rows, oldest first.

    Args:
        histories: at least two items each.
        first: position (≥ 1) of each user's first judged event; knowledge is made from the events before it.
    """
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.array([item for history in histories for item in history], dtype=np.int64)
    sequences = Sequences(items, np.arange(len(items), dtype=np.int64), offsets)
    return Cohort(sequences, offsets[:-1] + np.asarray(first, dtype=np.int64), span)


def newest(history: Sequence[int], span: int) -> int:
    """Return the position that splits off the newest half of a history, at most `span` events, for judging."""
    return len(history) - max(1, min(span, len(history) // 2))


def harm(parts: FrozenModels, cohort: Cohort, at: JudgedMoments, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ⁺ and ℓ⁰ of the events after snapshots, (m,) each, nats; ℓ⁰ has no gradient."""
    target = cohort.targets(at)
    with torch.no_grad():
        zero = F.cross_entropy(parts.logits(at, None), target, reduction="none")
    return F.cross_entropy(parts.logits(at, vectors), target, reduction="none"), zero


@torch.no_grad()
def margins(parts: FrozenModels, cohort: Cohort, step: Callable[[], None] | None = None) -> Margins:
    """Return the margins of a cohort, with knowledge generated by the current language model.

    Args:
        step: called after every batch.
    """
    snapshots: list[IntArray] = []
    values: list[FloatArray] = []
    harms: list[FloatArray] = []
    for chosen in cohort.chunks(parts.batch):
        at = cohort.moments(parts, chosen)
        positive, zero = harm(parts, cohort, at, parts.vectors(at))
        reference = F.cross_entropy(at.by_behaviour, cohort.targets(at), reduction="none")
        snapshots.append(chosen[at.batch.user.numpy()])
        values.append((reference - positive).double().numpy())
        harms.append((positive - zero).double().numpy())
        if step is not None:
            step()
    if not snapshots:
        return Margins(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    snapshot = np.concatenate(snapshots)
    return Margins(snapshot, cohort.users[snapshot], np.concatenate(values), np.concatenate(harms))
