"""Training of the two dense scorers, reference and fused: full-catalogue softmax at every position.

This module has the loss, the validation and the handling of new items; the loop is in `models.scorers.epochs`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.compute.devices import moved
from models.data.fold import Fold, fresh_items
from models.data.sequences import Sequences, Windows, tensors
from models.measuring.metrics import metrics
from models.scorers.backbone import Backbone, ItemSide
from models.scorers.epochs import SCALES, Progress, best_epoch, further_epochs, set_scale, stride_of
from models.scorers.fusion import FusedScorer
from models.scorers.ranks import ELEMENTS, hidden_before, target_ranks
from schemas.settings import FitSettings

DenseScorer = TypeVar("DenseScorer", bound=Backbone)

FULL = 4096  # catalogues up to this size use every item as a negative
NEGATIVES = 2048  # sampled negatives per step in larger catalogues, in addition to the step's targets
CHUNK = 2**26  # scores computed at a time, 128 MB in half precision
DROPPED = 0.05  # share of items whose vectors are dropped in a step
JUDGED = 8000  # held-out events for choosing the epoch; ranking all 22,363 of Beauty costs as much as an epoch


class Keep(Protocol):
    """Returns a stored scorer that was trained in the same way from the same start, else calls `train`."""

    def __call__(
        self, stage: str, start: DenseScorer, fold: Fold, settings: FitSettings,
        train: Callable[[], tuple[DenseScorer, dict[str, float]]],
    ) -> tuple[DenseScorer, dict[str, float]]:
        """Return a trained scorer of the same class as `start` and its metrics; `start` may be modified."""


def train_reference(
    fold: Fold, settings: FitSettings, max_len: int, progress: Progress | None = None, keep: Keep | None = None,
) -> tuple[Backbone, dict[str, float]]:
    """Train the reference; return the epoch with the best validation NDCG@10 and its metrics on the held-out events.

    The same seed, data and number of threads give the same weights.

    Args:
        max_len: maximum number of items read from a history.
        progress: called after every epoch with epochs done, maximum of epochs, and metrics.
        keep: storage for trained scorers; None = no storage.
    """
    torch.manual_seed(settings.seed)
    model = Backbone(
        fold.n_items, settings.dim, settings.layers, settings.heads, max_len, settings.dropout, fold.fresh())
    return train_scorer(model, fold, settings, progress, keep)


def train_fused(
    fold: Fold, text: Tensor, settings: FitSettings, max_len: int, progress: Progress | None = None,
    keep: Keep | None = None,
) -> tuple[FusedScorer, dict[str, float]]:
    """Train the fused scorer with item texts but without user knowledge; otherwise like `train_reference`.

    Args:
        text: (n_items, x) from `models.compute.pca.condense`.
    """
    torch.manual_seed(settings.seed)
    model = FusedScorer(
        text, fold.fresh(), fold.n_items, settings.dim, settings.layers, settings.heads, max_len, settings.dropout)
    return train_scorer(model, fold, settings, progress, keep)


def extend(
    model: DenseScorer, fold: Fold, settings: FitSettings, progress: Progress | None = None, keep: Keep | None = None,
) -> DenseScorer:
    """Return a copy of a trained scorer after further epochs that include the held-out events."""
    if keep is not None:
        return keep("extended", copy.deepcopy(model), fold, settings, lambda: (
            extend(model, fold, settings, progress), {}))[0]

    def prepare(started: DenseScorer) -> None:
        started.fresh.copy_(fresh_items(fold.sequences, fold.n_items))
        if isinstance(started, FusedScorer):
            started.attention.requires_grad_(False)

    return further_epochs(model, fold.sequences, settings, _loss(fold.sequences, fold.n_items), progress, prepare)


def train_scorer(
    model: DenseScorer, fold: Fold, settings: FitSettings, progress: Progress | None, keep: Keep | None = None,
) -> tuple[DenseScorer, dict[str, float]]:
    """Train a scorer from its current weights; return its best epoch and metrics. See `train_reference`."""
    if keep is not None:
        return keep("trained", model, fold, settings, lambda: train_scorer(model, fold, settings, progress))
    began = time.monotonic()
    trained, best = best_epoch(
        model, fold, settings, settings.epochs, _loss(fold.training(), fold.n_items),
        lambda judged: validate(judged, fold), progress)
    trained.fresh_shift.add_(fresh_shift(trained, fold))
    best |= {"nll": temper(trained, fold), "scale": float(trained.scale)}
    trained.fresh_shift.add_(fresh_shift(trained, fold))  # `temper` changed the share of new items
    return trained.eval().requires_grad_(False), best | {"seconds": time.monotonic() - began}


def _loss(
    sequences: Sequences, n_items: int,
) -> Callable[[Backbone, Sequences, Windows], tuple[Tensor, int]]:
    """Return a loss over windows of these sequences; item frequencies determine the weights of sampled negatives."""
    return partial(_window_loss, counts=torch.from_numpy(np.bincount(sequences.item, minlength=n_items)))


def _window_loss(model: Backbone, train: Sequences, part: Windows, *, counts: Tensor) -> tuple[Tensor, int]:
    tokens, where, places, rows = tensors(train, part, strict=False)
    target = torch.from_numpy(train.item[rows.numpy()])
    device = model.items.device
    tokens, where, places, target, counts = moved((tokens, where, places, target, counts), device)
    side = model.item_side((torch.rand(model.n_items) < DROPPED).to(device))
    return _softmax_loss(model, model(tokens, side)[where, places], target, side, counts, where), len(target)


def _softmax_loss(
    model: Backbone, hidden: Tensor, target: Tensor, side: ItemSide, counts: Tensor, window: Tensor,
) -> Tensor:
    """Return the mean negative log-likelihood (nats) of targets (m,) given hidden states (m, d).

    In large catalogues the partition function is estimated from the step's targets and `NEGATIVES` other items, each
    weighted by the inverse of its inclusion probability (importance sampling): an epoch over Beauty's 12,101 items
    takes 8 CPU seconds instead of 40. On a GPU every item is scored, in chunks. Fresh items are not used as negatives,
    because the model would learn to score new items, and the texts of these ones, low.

    The targets of an event's own window are in the step whenever the event is, so their weight is 1. They are what the
    same user takes before and after: with the weights of others, up to 5 on Beauty, training would push down what the
    user takes next.

    Args:
        counts: (n_items,) training events of each item.
        window: (m,) ascending, the window of each event.
    """
    n = model.n_items
    if n <= FULL or target.device.type == "cuda":
        logits = torch.cat([model.scores(part, side) for part in hidden.split(max(1, CHUNK // n))]).float()
        return F.cross_entropy(logits.masked_fill(model.fresh, -torch.inf), target)
    pool, column = torch.unique(torch.cat([target, torch.randint(n, (NEGATIVES,))]), return_inverse=True)
    absent = (1 - counts[pool] / counts.sum()).pow(len(target)) * (1 - 1 / n) ** NEGATIVES
    weight = -torch.log1p(-absent)
    own = column[: len(target)]
    # Adding weights and mask to the bias, and correcting targets in place, saves a fifth of an epoch on Beauty.
    bias = (side[1][pool] + weight).masked_fill(model.fresh[pool], -torch.inf)
    row, at = _together(window, own, len(pool))
    logits = F.linear(hidden, side[0][pool], bias).index_put_((row, at), -weight[at], accumulate=True)
    return F.cross_entropy(logits, own)


def _together(window: Tensor, column: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return all distinct pairs of an event and the column of a target in its window, itself included.

    Args:
        window: (m,) ascending, the window of each event.
        column: (m,) column of each event's target, below `width`.
    """
    size = torch.bincount(window)
    first = (size.cumsum(0) - size)[window]
    many = size[window]
    row = torch.arange(len(window)).repeat_interleave(many)
    inside = torch.arange(len(row)) - (many.cumsum(0) - many).repeat_interleave(many)
    pair = torch.unique(row * width + column[first.repeat_interleave(many) + inside])
    return pair // width, pair % width


@torch.no_grad()
def fresh_shift(model: Backbone, fold: Fold) -> float:
    """Return the bias change that makes the expected share of new items in held-out events equal the actual share.

    0 if fewer than 20 held-out events are on new items.
    """
    rows, hidden = hidden_before(model, fold.sequences, fold.begin, stride_of(model))
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
    """Set the scale of a scorer's logits to maximise the held-out likelihood; return the mean loss (nats).

    Args:
        limit: maximum number of held-out events to score.
    """
    rows, hidden = hidden_before(model, fold.sequences, fold.begin, stride_of(model))
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
    return set_scale(model, (nll / len(chosen)).tolist())


@torch.no_grad()
def validate(model: Backbone, fold: Fold) -> dict[str, float]:
    """Return metrics on at most `JUDGED` held-out rows, without user knowledge, in windows as in training."""
    side = model.item_side()
    rows, hidden = hidden_before(model, fold.sequences, fold.begin, stride_of(model))
    if len(rows) > JUDGED:
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:JUDGED])
        rows, hidden = rows[chosen], hidden[torch.from_numpy(chosen)]
    ranks, logp = target_ranks(lambda part: model.scores(hidden[part], side), fold.n_items, fold.sequences, rows)
    return metrics(ranks) | {"nll": float(-logp.mean()) if len(rows) else 0.0}
