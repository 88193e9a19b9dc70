"""Training of the generative scorer."""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import Tensor, nn

from models.compute.devices import Place, moved, place
from models.data.fold import Fold
from models.data.sequences import Sequences, Windows, batches, tensors, windows
from models.generative.scorer import Generative, Progress, rank_generative
from models.generative.semantic_ids import SemanticIds
from models.measuring.metrics import ndcg
from models.scorers.training import FEWEST, FEWEST_SLOTS, LEARNING_RATE, PATIENCE, SCALES, SLOTS, STEPS, STRIDE, descend
from schemas.settings import FitSettings

JUDGED, JUDGING = 1000, 16  # held-out events that choose the epoch, and beams for that: 1.5 s, like 64 within .005
WEIGHT_DECAY = 0.01
EPOCHS = 2  # times the dense scorer's: on Beauty, leave-one-out, it goes on learning beyond 40
EXTENSION = 3  # epochs over the held-out events too, as `models.scorers.training.extend`


def train_generative(
    fold: Fold, ids: SemanticIds, settings: FitSettings, max_len: int, progress: Progress | None = None,
) -> tuple[Generative, dict[str, float]]:
    """Return the model with the best NDCG@10 on held-out events, as the dense scorer's is chosen, and its metrics.

    Likelihood turns earlier: in stream time on Beauty at epoch 4, where NDCG@10 is .016; by epoch 24 it is .022.

    The same seed, data and number of threads give the same weights.
    """
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    model = Generative(ids, settings.dim, settings.layers, settings.heads, max_len, settings.id_dropout)
    here = place(settings.device)
    if here.ranks > 1:
        torch.manual_seed(settings.seed + here.rank)  # weights are drawn already; dropout is each process's own
    model.to(here.device)
    averaged = copy.deepcopy(model)
    optimizer = _optimizer(model)
    train = fold.training()
    best, weights = {"ndcg_at_10": -1.0}, copy.deepcopy(averaged.state_dict())
    lowest, better, steps = float("inf"), 0, 0  # likelihood, the last epoch that was better in either
    epochs = EPOCHS * settings.epochs
    for epoch in range(epochs):
        loss, steps = _epoch(model, averaged, optimizer, train, rng, steps, here)
        judged = averaged if here.device.type == "cpu" else copy.deepcopy(averaged).cpu()
        now = here.agree(_validate(judged, fold) | {"loss": loss, "epoch": epoch + 1.0})
        if progress is not None:
            progress(epoch + 1, epochs, now)
        if now["ndcg_at_10"] > best["ndcg_at_10"]:
            best, weights, better = now, copy.deepcopy(averaged.state_dict()), epoch
        if now["nll"] < lowest:
            lowest, better = now["nll"], epoch
        if epoch - better >= PATIENCE and steps >= FEWEST:
            break
    averaged.load_state_dict(weights)
    averaged.cpu()
    best |= {"nll": temper(averaged, fold), "scale": float(averaged.scale)}
    about = {f"semantic_ids_{name}": value for name, value in ids.about.items()}
    return averaged.eval().requires_grad_(False), best | about | {"seconds": time.monotonic() - began}


def extend_generative(model: Generative, fold: Fold, settings: FitSettings, progress: Progress | None) -> Generative:
    """Return a copy that has gone on, over the held-out events too."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    here = place(settings.device)
    if here.ranks > 1:
        torch.manual_seed(settings.seed + here.rank)
    model = copy.deepcopy(model).to(here.device).requires_grad_(True)
    scale = float(model.scale)
    model.scale.fill_(1.0)  # trained as before
    averaged = copy.deepcopy(model)
    optimizer, steps = _optimizer(model), 0
    for epoch in range(EXTENSION):
        loss, steps = _epoch(model, averaged, optimizer, fold.sequences, rng, steps, here)
        if progress is not None:
            progress(epoch + 1, EXTENSION, {"loss": loss})
    averaged.scale.fill_(scale)
    return averaged.cpu().eval().requires_grad_(False)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))


def _epoch(
    model: Generative, averaged: Generative, optimizer: torch.optim.Optimizer, train: Sequences,
    rng: np.random.Generator, steps: int, here: Place,
) -> tuple[float, int]:
    """Train for one epoch; return the mean loss (nats; of this process's share) and the number of steps so far."""
    part = windows(train, model.max_len, max(1, int(model.max_len * STRIDE)))
    slots = min(SLOTS, max(FEWEST_SLOTS, int((part.stop - part.start).sum()) // STEPS))
    total, seen = 0.0, 0
    model.train()
    for batch in batches(part, slots, rng):
        mine = here.share(batch)
        loss = None
        if len(mine):
            with here.autocast():
                nll = _nll(model, train, part[mine])
            total, seen = total + float(nll.detach().sum()), seen + len(nll)
            # of all events of the batch: shares differ in size, and the processes' gradients are summed
            loss = nll.mean() * (len(nll) / int((part.stop - part.first)[batch].sum()))
        steps = descend(loss, model, averaged, optimizer, steps, here)
    return total / max(1, seen), steps


def _nll(model: Generative, sequences: Sequences, part: Windows) -> Tensor:
    tokens, where, slots, rows = tensors(sequences, part)
    target = torch.from_numpy(sequences.item[rows.numpy()])
    tokens, where, slots, target = moved((tokens, where, slots, target), model.codes.device)
    return -model.log_probability(model(tokens)[where, slots], target)


@torch.no_grad()
def temper(model: Generative, fold: Fold) -> float:
    """Set the scale to what held-out events are likeliest under; return their mean loss (nats)."""
    tried = {}
    for scale in SCALES:
        model.scale.fill_(scale)
        tried[scale] = _loss(model, fold)
    best = min(SCALES, key=tried.__getitem__)
    model.scale.fill_(best)
    return tried[best]


def _validate(model: Generative, fold: Fold) -> dict[str, float]:
    """Return NDCG@10 of (at most `JUDGED`) held-out events, by a beam, and the mean loss (nats) of all."""
    begin = fold.begin
    rows = np.flatnonzero(np.arange(len(fold.sequences.item)) >= np.repeat(begin, fold.sequences.lengths()))
    only = np.sort(np.random.default_rng(0).permutation(rows)[:JUDGED])
    ranks = rank_generative(model, fold.sequences, begin, width=JUDGING, only=only).rank
    return {"ndcg_at_10": float(ndcg(ranks).mean()) if len(ranks) else 0.0, "nll": _loss(model, fold)}


@torch.no_grad()
def _loss(model: Generative, fold: Fold) -> float:
    """Return the mean negative log-likelihood of the held-out rows, nats."""
    model.eval()
    part = windows(fold.sequences, model.max_len, max(1, int(model.max_len * STRIDE)), fold.begin)
    parts = [_nll(model, fold.sequences, part[batch]) for batch in batches(part, 20_000)]
    return float(torch.cat(parts).mean()) if parts else 0.0
