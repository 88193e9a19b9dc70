"""The loop that trains a scorer of sequences: the best epoch on held-out events, and further epochs over all of them.

Weights are averaged exponentially (EMA) at a constant learning rate, which does what a decaying schedule does without
knowing beforehand how long training will last. MovieLens-100K, CPU seconds of one core: EMA is best after 9 epochs
(26 s, stream-time NDCG@10 .098); linear decay over 25 epochs (54 s) reaches .097.

Once the number of epochs is known the held-out events are too valuable to leave out: without the newest tenth of the
training part NDCG@10 falls from .098 to .090. `further_epochs` goes on over all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from models.compute.devices import ALONE, Place, place
from models.data.fold import Fold
from models.data.sequences import Sequences, Windows, batches, windows
from schemas.settings import FitSettings

Progress = Callable[[int, int, dict[str, float]], None]

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
SLOTS = 1500  # padded positions per step, at most; 3,000 needs half as many epochs again for the same quality
STEPS = 40  # per epoch, at least: small data sets get smaller steps, down to `FEWEST_SLOTS`
FEWEST_SLOTS = 64
STRIDE = 0.8  # of the window length: a fifth of each later window of a long history is context only
PATIENCE = 2  # epochs in which neither NDCG@10 nor likelihood on them got better; NDCG@10 alone is noisy
WARMUP = 100  # steps
FEWEST = 300  # steps before patience counts: until then small data sets have hardly left their random start
EXTENSION = 3  # epochs over the held-out events too
SCALES = (1.15, 1.0, 0.92, 0.85, 0.78, 0.71, 0.64, 0.57, 0.5)  # of logits, tried on held-out events


class SequenceScorer(nn.Module):
    """A scorer of a user's next item that this loop can train.

    Attributes:
        max_len: items of a history it reads.
        scale: () factor of its logits: 1 while it is trained, then what held-out events are likeliest under.
    """

    max_len: int
    scale: Tensor


Scorer = TypeVar("Scorer", bound=SequenceScorer)
BatchLoss = Callable[[Scorer, Sequences, Windows], tuple[Tensor, int]]
"""loss(model, sequences, windows) → the mean negative log-likelihood (nats) of the events in the windows, their
number."""


def stride_of(model: SequenceScorer) -> int:
    """Return the items between two windows of a long history."""
    return max(1, int(model.max_len * STRIDE))


def best_epoch(
    model: Scorer, fold: Fold, settings: FitSettings, epochs: int, loss: BatchLoss[Scorer],
    validate: Callable[[Scorer], dict[str, float]], progress: Progress | None = None,
) -> tuple[Scorer, dict[str, float]]:
    """Return the averaged weights, on the CPU, of the epoch with the best NDCG@10 on held-out events, and its metrics.

    It stops early once neither NDCG@10 nor likelihood has improved for `PATIENCE` epochs.

    Args:
        model: as it starts; it is trained in place and moved to `settings.device`.
        validate: gives "ndcg_at_10" and "nll" (nats) on the held-out events.
        progress: called after every epoch with epochs done, epochs at most, and metrics.
    """
    rng = np.random.default_rng(settings.seed)
    here = place(settings.device)
    if here.ranks > 1:
        torch.manual_seed(settings.seed + here.rank)  # weights are drawn already; dropout is each process's own
    model.to(here.device)
    averaged = copy.deepcopy(model)
    optimizer = _optimizer(model)
    train = fold.training()
    best, weights = {"ndcg_at_10": -1.0}, copy.deepcopy(averaged.state_dict())
    lowest, improved, steps = float("inf"), 0, 0  # likelihood, and the last epoch that improved either
    for epoch in range(epochs):
        mean, steps = run_epoch(model, averaged, optimizer, train, rng, steps, here, loss)
        judged = averaged if here.device.type == "cpu" else copy.deepcopy(averaged).cpu()
        now = here.agree(validate(judged) | {"loss": mean, "epoch": epoch + 1.0})
        if progress is not None:
            progress(epoch + 1, epochs, now)
        if now["ndcg_at_10"] > best["ndcg_at_10"]:
            best, weights, improved = now, copy.deepcopy(averaged.state_dict()), epoch
        if now["nll"] < lowest:
            lowest, improved = now["nll"], epoch
        if epoch - improved >= PATIENCE and steps >= FEWEST:
            break
    averaged.load_state_dict(weights)
    return averaged.cpu(), best


def further_epochs(
    model: Scorer, sequences: Sequences, settings: FitSettings, loss: BatchLoss[Scorer],
    progress: Progress | None = None, prepare: Callable[[Scorer], None] = lambda _: None,
) -> Scorer:
    """Return a copy of a trained scorer after `EXTENSION` more epochs over `sequences`, frozen.

    Args:
        prepare: called with the copy before training.
    """
    rng = np.random.default_rng(settings.seed)
    here = place(settings.device)
    torch.manual_seed(settings.seed + (here.rank if here.ranks > 1 else 0))
    model = copy.deepcopy(model).requires_grad_(True)
    scale = float(model.scale)
    model.scale.fill_(1.0)  # trained as before; with the scale in the loss the vectors would grow to undo it
    prepare(model)
    model.to(here.device)
    averaged = copy.deepcopy(model)
    optimizer, steps = _optimizer(model), 0
    for epoch in range(EXTENSION):
        mean, steps = run_epoch(model, averaged, optimizer, sequences, rng, steps, here, loss)
        if progress is not None:
            progress(epoch + 1, EXTENSION, {"loss": mean})
    averaged.scale.fill_(scale)
    return averaged.cpu().eval().requires_grad_(False)


def run_epoch(
    model: Scorer, averaged: Scorer, optimizer: torch.optim.Optimizer, train: Sequences, rng: np.random.Generator,
    steps: int, here: Place, loss: BatchLoss[Scorer],
) -> tuple[float, int]:
    """Train for one epoch; return the mean loss (nats; of this process's share) and the number of steps so far."""
    part = windows(train, model.max_len, stride_of(model))
    slots = min(SLOTS, max(FEWEST_SLOTS, int((part.stop - part.start).sum()) // STEPS))
    total, seen = 0.0, 0
    model.train()
    for batch in batches(part, slots, rng):
        mine = here.share(batch)
        weighted = None
        if len(mine):
            with here.autocast():
                mean, events = loss(model, train, part[mine])
            total, seen = total + mean.item() * events, seen + events
            # of all events of the batch: shares differ in size, and the processes' gradients are summed
            weighted = mean * (events / int((part.stop - part.first)[batch].sum()))
        steps = descend(weighted, model, averaged, optimizer, steps, here)
    return total / max(1, seen), steps


def descend(
    loss: Tensor | None, model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, steps: int,
    here: Place = ALONE,
) -> int:
    """Take one step down `loss`, with warm-up, and move the averaged weights; return the number of steps so far.

    Args:
        loss: None where this process has no share of the batch.
        here: the process; gradients of all are summed.
    """
    optimizer.zero_grad()
    if loss is not None:
        loss.backward()
    here.sum_gradients(model.parameters())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    steps += 1
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * min(1.0, steps / WARMUP)
    optimizer.step()
    average(averaged, model, steps)
    return steps


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, step: int, decay: float = 0.995) -> None:
    """Move averaged weights towards the model's; early on, when there is little to average, faster."""
    share = 1 - min(decay, step / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), share)


def set_scale(model: SequenceScorer, losses: Sequence[float]) -> float:
    """Multiply a scorer's scale by the entry of `SCALES` with the least loss on held-out events; return that loss.

    NDCG@10, which chooses the epoch, goes on rising long after likelihood has turned (Beauty, leave-one-out: epoch 12
    and 5, loss 8.27 → 8.49): unscaled, the scorer is too sure, and every margin against it looks better than it is.

    Args:
        losses: nats, one for each of `SCALES`.
    """
    best = min(range(len(SCALES)), key=losses.__getitem__)
    with torch.no_grad():
        model.scale.mul_(SCALES[best])
    return losses[best]


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.98))
