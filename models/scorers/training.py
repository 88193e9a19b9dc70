"""Training the two scorers of behaviour: full-catalogue softmax at every position, the best epoch by held-out events.

Weights are averaged exponentially (EMA) at a constant learning rate, which does what a decaying schedule does without
having to know beforehand how long training will last. MovieLens-100K, CPU seconds of one core: EMA is best after 9
epochs (26 s, stream-time NDCG@10 .098); linear decay over 25 epochs (54 s) reaches .097.

Once the number of epochs is known the held-out events are too valuable to leave out (without the newest tenth of the
training part NDCG@10 falls from .098 to .090): `extend` goes on over all of them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.compute.devices import ALONE, Place, moved, place
from models.data.fold import Fold, fresh_items
from models.data.sequences import Sequences, batches, tensors, windows
from models.measuring.metrics import metrics
from models.scorers.backbone import Backbone, ItemSide
from models.scorers.fusion import FusedScorer
from models.scorers.ranks import ELEMENTS, hidden_before, target_ranks
from schemas.settings import FitSettings

Progress = Callable[[int, int, dict[str, float]], None]
Scorer = TypeVar("Scorer", bound=Backbone)


class Keep(Protocol):
    """Gives a scorer trained before from the same start in the same way, else what `train` makes."""

    def __call__(
        self, stage: str, start: Scorer, fold: Fold, settings: FitSettings,
        train: Callable[[], tuple[Scorer, dict[str, float]]],
    ) -> tuple[Scorer, dict[str, float]]:
        """Return a trained scorer of `start`'s kind and its metrics; `start` may be changed."""


LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
SLOTS = 1500  # padded positions per step, at most; 3,000 needs half as many epochs again for the same quality
STEPS = 40  # per epoch, at least: small data sets get smaller steps, down to `FEWEST_SLOTS`
FEWEST_SLOTS = 64
STRIDE = 0.8  # of the window length: a fifth of each later window of a long history is context only
PATIENCE = 2  # epochs in which neither NDCG@10 nor likelihood on them got better; NDCG@10 alone is noisy
WARMUP = 100  # steps
FULL = 4096  # items up to which every one is a negative in every step
NEGATIVES = 2048  # drawn per step above that, beside the step's own targets
CHUNK = 2**26  # scores computed at a time, 128 MB in half precision
FEWEST = 300  # steps before patience counts: until then small data sets have hardly left their random start
DROPPED = 0.05  # share of items whose own vectors a step drops
EXTENSION = 3  # epochs of `extend`
SCALES = (1.15, 1.0, 0.92, 0.85, 0.78, 0.71, 0.64, 0.57, 0.5)  # of logits, tried by `temper`
JUDGED = 8000  # held-out events that choose the epoch: ranking all 22,363 of Beauty's costs as much as training on it


def train_reference(
    fold: Fold, settings: FitSettings, max_len: int, progress: Progress | None = None, keep: Keep | None = None,
) -> tuple[Backbone, dict[str, float]]:
    """Return the reference with the best validation NDCG@10, and its metrics on the held-out events.

    The same seed, data and number of threads give the same weights.

    Args:
        max_len: items of a history it reads.
        progress: called after every epoch with epochs done, epochs at most, and metrics.
        keep: where trained scorers are kept; None = nowhere.
    """
    torch.manual_seed(settings.seed)
    model = Backbone(
        fold.n_items, settings.dim, settings.layers, settings.heads, max_len, settings.dropout, fold.fresh())
    return train_scorer(model, fold, settings, progress, keep)


def train_fused(
    fold: Fold, text: Tensor, settings: FitSettings, max_len: int, progress: Progress | None = None,
    keep: Keep | None = None,
) -> tuple[FusedScorer, dict[str, float]]:
    """Return the fused scorer with item texts but before any user's knowledge; otherwise as `train_reference`.

    Args:
        text: (n_items, x) from `models.compute.pca.condense`.
    """
    torch.manual_seed(settings.seed)
    model = FusedScorer(
        text, fold.fresh(), fold.n_items, settings.dim, settings.layers, settings.heads, max_len, settings.dropout)
    return train_scorer(model, fold, settings, progress, keep)


def extend(
    model: Scorer, fold: Fold, settings: FitSettings, progress: Progress | None = None, keep: Keep | None = None,
) -> Scorer:
    """Return a copy of a trained scorer that has gone on, over the held-out events too."""
    if keep is not None:
        return keep("extended", copy.deepcopy(model), fold, settings, lambda: (
            extend(model, fold, settings, progress), {}))[0]
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    model = copy.deepcopy(model).requires_grad_(True)
    scale = float(model.scale)
    model.scale.fill_(1.0)  # trained as before; with the scale in the loss the vectors would grow to undo it
    model.fresh.copy_(fresh_items(fold.sequences, fold.n_items))
    if isinstance(model, FusedScorer):
        model.attention.requires_grad_(False)
    here = place(settings.device)
    model.to(here.device)
    averaged = copy.deepcopy(model)
    optimizer = _optimizer(model)
    steps = 0
    for epoch in range(EXTENSION):
        loss, steps = _epoch(model, averaged, optimizer, fold.sequences, rng, steps, here)
        if progress is not None:
            progress(epoch + 1, EXTENSION, {"loss": loss})
    averaged.scale.fill_(scale)
    return averaged.cpu().eval().requires_grad_(False)


def train_scorer(
    model: Scorer, fold: Fold, settings: FitSettings, progress: Progress | None, keep: Keep | None = None,
) -> tuple[Scorer, dict[str, float]]:
    """Return a scorer trained from where it stands, at its best epoch, with metrics; see `train_reference`."""
    if keep is not None:
        return keep("trained", model, fold, settings, lambda: train_scorer(model, fold, settings, progress))
    began = time.monotonic()
    rng = np.random.default_rng(settings.seed)
    here = place(settings.device)
    if here.ranks > 1:
        torch.manual_seed(settings.seed + here.rank)  # weights are drawn already; dropout is each process's own
    model.to(here.device)
    averaged = copy.deepcopy(model)
    optimizer = _optimizer(model)
    train = fold.training()
    best: dict[str, float] = {"ndcg_at_10": -1.0}
    lowest, better = float("inf"), 0  # likelihood, and the last epoch that was better in either
    weights = copy.deepcopy(averaged.state_dict())
    steps = 0
    for epoch in range(settings.epochs):
        loss, steps = _epoch(model, averaged, optimizer, train, rng, steps, here)
        judged = averaged if here.device.type == "cpu" else copy.deepcopy(averaged).cpu()
        now = here.agree(validate(judged, fold) | {"loss": loss, "epoch": epoch + 1.0})
        if progress is not None:
            progress(epoch + 1, settings.epochs, now)
        if now["ndcg_at_10"] > best["ndcg_at_10"]:
            best, weights, better = now, copy.deepcopy(averaged.state_dict()), epoch
        if now["nll"] < lowest:
            lowest, better = now["nll"], epoch
        if epoch - better >= PATIENCE and steps >= FEWEST:
            break
    averaged.load_state_dict(weights)
    averaged.cpu()
    averaged.fresh_shift.add_(fresh_shift(averaged, fold))
    best |= {"nll": temper(averaged, fold), "scale": float(averaged.scale)}
    averaged.fresh_shift.add_(fresh_shift(averaged, fold))  # the scale has moved their share
    return averaged.eval().requires_grad_(False), best | {"seconds": time.monotonic() - began}


def _optimizer(model: Backbone) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.98))


def _epoch(
    model: Backbone, averaged: Backbone, optimizer: torch.optim.Optimizer, train: Sequences,
    rng: np.random.Generator, steps: int, here: Place,
) -> tuple[float, int]:
    """Train for one epoch; return the mean loss (nats; of this process's share) and the number of steps so far."""
    part = windows(train, model.max_len, max(1, int(model.max_len * STRIDE)))
    counts = torch.from_numpy(np.bincount(train.item, minlength=model.n_items)).to(here.device)
    slots = min(SLOTS, max(FEWEST_SLOTS, int((part.stop - part.start).sum()) // STEPS))
    total, seen = 0.0, 0
    model.train()
    for batch in batches(part, slots, rng):
        mine = here.share(batch)
        loss = None
        if len(mine):
            tokens, where, places, rows = tensors(train, part[mine])
            target = torch.from_numpy(train.item[rows.numpy()])
            tokens, where, places, target = moved((tokens, where, places, target), here.device)
            with here.autocast():
                side = model.item_side((torch.rand(model.n_items) < DROPPED).to(here.device))
                loss = _softmax_loss(model, model(tokens, side)[where, places], target, side, counts)
            total, seen = total + loss.item() * len(target), seen + len(target)
            # of all events of the batch: shares differ in size, and the processes' gradients are summed
            loss = loss * (len(target) / int((part.stop - part.first)[batch].sum()))
        steps = descend(loss, model, averaged, optimizer, steps, here)
    return total / max(1, seen), steps


def descend(
    loss: Tensor | None, model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, steps: int,
    here: Place = ALONE,
) -> int:
    """Take one step down `loss`, with warm-up, the averaged weights behind; return the number of steps so far.

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


def _softmax_loss(model: Backbone, hidden: Tensor, target: Tensor, side: ItemSide, counts: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of targets (m,) given hidden states (m, d).

    In large catalogues the partition function is estimated from a step's targets and `NEGATIVES` other items, each
    weighted by one over its probability of being there (importance sampling): Beauty's 12,101 items take 8 CPU seconds
    an epoch instead of 40. On a GPU every item is scored, in chunks. Fresh items are no negatives: that would teach
    that new items, and the texts of just these, score low.

    Args:
        counts: (n_items,) training events of each item.
    """
    n = model.n_items
    if n <= FULL or target.device.type == "cuda":
        logits = torch.cat([model.scores(part, side) for part in hidden.split(max(1, CHUNK // n))]).float()
        return F.cross_entropy(logits.masked_fill(model.fresh, -torch.inf), target)
    pool, column = torch.unique(torch.cat([target, torch.randint(n, (NEGATIVES,))]), return_inverse=True)
    absent = (1 - counts[pool] / counts.sum()).pow(len(target)) * (1 - 1 / n) ** NEGATIVES
    weight = -torch.log1p(-absent)
    own = column[: len(target)]
    # Weights and mask go in with the bias, and the target's own correction in place: a fifth of an epoch on Beauty.
    bias = (side[1][pool] + weight).masked_fill(model.fresh[pool], -torch.inf)
    logits = F.linear(hidden, side[0][pool], bias)
    each = torch.arange(len(target))
    logits = logits.index_put_((each, own), -weight[own], accumulate=True)  # the target is there for certain
    return F.cross_entropy(logits, own)


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, step: int, decay: float = 0.995) -> None:
    """Move averaged weights towards the model's; early on, when there is little to average, faster."""
    share = 1 - min(decay, step / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), share)


@torch.no_grad()
def fresh_shift(model: Backbone, fold: Fold) -> float:
    """Return what to add to the shift of new items so that their expected share of held-out events is the true one.

    0 where fewer than 20 held-out events are on new items.
    """
    rows, hidden = hidden_before(model, fold.sequences, fold.begin, max(1, int(model.max_len * STRIDE)))
    taken = int(model.fresh.numpy()[fold.sequences.item[rows]].sum())
    if taken < 20:
        return 0.0
    side = model.item_side()
    odds = []
    for part in hidden.split(max(1, ELEMENTS // model.n_items)):
        logits = model.scores(part, side)
        odds.append(logits[:, model.fresh].logsumexp(1) - logits[:, ~model.fresh].logsumexp(1))
    log_odds = torch.cat(odds)
    low, high = -10.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        share = (log_odds + model.scale * middle).sigmoid().sum()
        low, high = (middle, high) if float(share) < taken else (low, middle)
    return (low + high) / 2


@torch.no_grad()
def temper(model: Backbone, fold: Fold, limit: int = 6000) -> float:
    """Set the scale of a scorer's logits to what held-out events are likeliest under; return their mean loss (nats).

    NDCG@10, which chooses the epoch, goes on rising long after likelihood has turned (Beauty, leave-one-out: epoch 12
    and 5, loss 8.27 → 8.49): unscaled, the scorer is too sure, and every margin against it looks better than it is.
    """
    rows, hidden = hidden_before(model, fold.sequences, fold.begin, max(1, int(model.max_len * STRIDE)))
    if not len(rows):
        return 0.0
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:limit])
    target = torch.from_numpy(fold.sequences.item[rows[chosen]])
    side = model.item_side()
    nll = torch.zeros(len(SCALES), dtype=torch.float64)
    for part in torch.arange(len(chosen)).split(max(1, ELEMENTS // model.n_items)):
        logits = model.scores(hidden[torch.from_numpy(chosen[part.numpy()])], side)
        own = logits.gather(1, target[part, None]).squeeze(1)
        nll += torch.stack([((scale * logits).logsumexp(1) - scale * own).double().sum() for scale in SCALES])
    best = int(nll.argmin())
    model.scale.mul_(SCALES[best])
    return float(nll[best]) / len(chosen)


@torch.no_grad()
def validate(model: Backbone, fold: Fold) -> dict[str, float]:
    """Return quality on (at most `JUDGED`) held-out rows, without users' knowledge, in windows as in training."""
    side = model.item_side()
    rows, hidden = hidden_before(model, fold.sequences, fold.begin, max(1, int(model.max_len * STRIDE)))
    if len(rows) > JUDGED:
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:JUDGED])
        rows, hidden = rows[chosen], hidden[torch.from_numpy(chosen)]
    ranks, logp = target_ranks(lambda part: model.scores(hidden[part], side), fold.n_items, fold.sequences, rows)
    return metrics(ranks) | {"nll": float(-logp.mean()) if len(rows) else 0.0}
