"""Learning what to ask a language model about users: codebooks, adaptor and fusion, under LWGR's constraint.

arXiv 2605.18771: min_θ max_{λ ≥ 0} L_rec + λ (C − ε_C) with C = E[max(0, s_ref − s_θ − δ)], s the log-probability of
what the user did. In training C vanishes by overfitting, so λ follows C on events held out:
λ ← [λ + η (C_val/ε_C − 1)]_+.
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.data.fold import Fold
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.measuring.harm import DELTA
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.scorers.snapshots import SnapshotBatch, after, batch_of, draw
from models.scorers.training import Progress
from models.systems.lwgr.knowledge import KnowledgeModel
from schemas.settings import FitSettings, LlmSettings

SNAPSHOTS = 192  # per epoch
JUDGED = 96  # snapshots of held-out events, for λ and for the best epoch
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
ALLOWED = 0.5  # ε_C as a share of C before knowledge is used (papers: without such a scale λ is inert)
DUAL_RATE = 0.5  # η
MAX_LAGRANGE = 5.0


def train_knowledge(
    fold: Fold, reference: Backbone, fused: FusedScorer, knowledge: KnowledgeModel, cache: ItemCache,
    llm: LanguageModel, fit: FitSettings, llm_settings: LlmSettings, progress: Progress | None = None,
) -> dict[str, float]:
    """Train `knowledge` and `fused.attention` in place; everything else is frozen. The best epoch on held-out events is
    kept, and "before the first" is one of them: knowledge that does not help is not used.

    Args:
        progress: called after every batch with batches done, batches in all, and metrics.

    Returns:
        The best epoch's metrics: negative log-likelihoods (nats), C, λ; seconds; generations.
    """
    began = time.monotonic()
    torch.manual_seed(fit.seed)
    rng = np.random.default_rng(fit.seed)
    train = fold.training()
    size = llm_settings.batch
    judged = [
        batch_of(fold.sequences, after(fold.sequences, rows, reference.max_len), reference, fused, llm_settings.history)
        for rows in _chunks(draw(fold.sequences, JUDGED, rng, fold.begin), size)]
    fused.requires_grad_(False).attention.requires_grad_(True)
    knowledge.requires_grad_(True)
    weights = [*knowledge.parameters(), *fused.attention.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    side = tuple(part.detach() for part in fused.item_side())
    now = _judge(fold, judged, fused, knowledge, cache, llm)
    allowed, lagrange = max(ALLOWED * now["constraint"], 1e-3), 1.0
    best, kept = now | {"lagrange": lagrange, "epoch": 0.0}, _copies(knowledge, fused)
    total = fit.knowledge_epochs * -(-SNAPSHOTS // size)
    done = 0
    for epoch in range(fit.knowledge_epochs):
        for rows in _chunks(draw(train, SNAPSHOTS, rng), size):
            knowledge.train()
            fused.train()  # dropout: on what it was trained on the scorer is surer than it will be on new events
            batch = batch_of(train, after(train, rows, reference.max_len), reference, fused, llm_settings.history)
            fused.eval()
            vectors = knowledge(batch.user_hidden, batch.histories, cache, llm)
            target = torch.from_numpy(train.item[batch.rows])
            nll, shortfall = _losses(fused, batch, vectors, target, side)
            loss = nll.mean() + lagrange * shortfall.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            done += 1
            if progress is not None:
                progress(min(done, total), total, {"loss": float(nll.detach().mean()), "lagrange": lagrange})
        now = _judge(fold, judged, fused, knowledge, cache, llm)
        lagrange = min(MAX_LAGRANGE, max(0.0, lagrange + DUAL_RATE * (now["constraint"] / allowed - 1)))
        if now["nll"] < best["nll"]:
            best, kept = now | {"lagrange": lagrange, "epoch": epoch + 1.0}, _copies(knowledge, fused)
    knowledge.load_state_dict(kept[0])
    fused.attention.load_state_dict(kept[1])
    knowledge.eval().requires_grad_(False)
    fused.eval().requires_grad_(False)
    generations = done * size + (fit.knowledge_epochs + 1) * len(judged) * size
    return best | {"allowed": allowed, "seconds": time.monotonic() - began, "generations": float(generations)}


def _losses(
    fused: FusedScorer, batch: SnapshotBatch, vectors: Tensor, target: Tensor, side: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Return negative log-likelihood and max(0, s_ref − s_θ − δ) of each event, (m,) each."""
    hidden = fused.fuse(batch.fused_hidden, vectors)[batch.user, batch.slot]
    nll = F.cross_entropy(fused.scores(hidden, (side[0], side[1])), target, reduction="none")
    reference = F.cross_entropy(batch.ref_logits, target, reduction="none")
    return nll, torch.relu(nll - reference - DELTA)


@torch.no_grad()
def _judge(
    fold: Fold, judged: list[SnapshotBatch], fused: FusedScorer, knowledge: KnowledgeModel, cache: ItemCache,
    llm: LanguageModel,
) -> dict[str, float]:
    """Return mean losses on held-out events: reference, fused without and with knowledge, and C."""
    knowledge.eval()
    fused.eval()
    side = fused.item_side()
    sums = np.zeros(4)
    count = 0
    for batch in judged:
        target = torch.from_numpy(fold.sequences.item[batch.rows])
        vectors = knowledge(batch.user_hidden, batch.histories, cache, llm)
        nll, shortfall = _losses(fused, batch, vectors, target, side)
        without = F.cross_entropy(fused.scores(batch.fused_hidden[batch.user, batch.slot], side), target)
        reference = F.cross_entropy(batch.ref_logits, target)
        m = len(target)
        sums += [float(nll.sum()), float(shortfall.sum()), float(without) * m, float(reference) * m]
        count += m
    names = ("nll", "constraint", "nll_without_knowledge", "nll_reference")
    return dict(zip(names, (sums / max(1, count)).tolist(), strict=True))


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _copies(knowledge: KnowledgeModel, fused: FusedScorer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return copy.deepcopy(knowledge.state_dict()), copy.deepcopy(fused.attention.state_dict())
