"""Training of the generative scorer, with the same loop as the dense scorers (`models.scorers.epochs`)."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from models.compute.devices import moved
from models.data.fold import Fold
from models.data.sequences import Sequences, Windows, batches, tensors, windows
from models.generative.scorer import Generative, rank_generative
from models.generative.semantic_ids import SemanticIds
from models.measuring.metrics import ndcg
from models.scorers.epochs import SCALES, Progress, best_epoch, further_epochs, set_scale, stride_of
from schemas.settings import FitSettings

JUDGED, JUDGING = 1000, 16  # held-out events and beams for choosing the epoch: 1.5 s, within .005 of 64 beams
EPOCHS = 2  # times the dense scorer's epochs: on Beauty, leave-one-out, it keeps improving beyond 40


def train_generative(
    fold: Fold, ids: SemanticIds, settings: FitSettings, max_len: int, progress: Progress | None = None,
) -> tuple[Generative, dict[str, float]]:
    """Train the model; return the epoch with the best held-out NDCG@10 and its metrics, as for the dense scorers.

    Likelihood peaks earlier: in stream time on Beauty at epoch 4, where NDCG@10 is .016; at epoch 24 it is .022.

    The same seed, data and number of threads give the same weights.
    """
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    model, best = best_epoch(
        Generative(ids, settings.dim, settings.layers, settings.heads, max_len, settings.id_dropout), fold, settings,
        EPOCHS * settings.epochs, _window_loss, lambda judged: _validate(judged, fold), progress)
    best |= {"nll": temper(model, fold), "scale": float(model.scale)}
    about = {f"semantic_ids_{name}": value for name, value in ids.about.items()}
    return model.eval().requires_grad_(False), best | about | {"seconds": time.monotonic() - began}


def extend_generative(model: Generative, fold: Fold, settings: FitSettings, progress: Progress | None) -> Generative:
    """Return a copy after further epochs that include the held-out events."""
    return further_epochs(model, fold.sequences, settings, _window_loss, progress)


def _window_loss(model: Generative, sequences: Sequences, part: Windows) -> tuple[Tensor, int]:
    nll = _nll(model, sequences, part)
    return nll.mean(), len(nll)


def _nll(model: Generative, sequences: Sequences, part: Windows) -> Tensor:
    tokens, where, slots, rows = tensors(sequences, part, strict=False)
    target = torch.from_numpy(sequences.item[rows.numpy()])
    tokens, where, slots, target = moved((tokens, where, slots, target), model.codes.device)
    return -model.log_probability(model(tokens)[where, slots], target)


@torch.no_grad()
def temper(model: Generative, fold: Fold) -> float:
    """Set the scale to maximise the held-out likelihood; return the mean loss (nats)."""
    losses = []
    for scale in SCALES:
        model.scale.fill_(scale)
        losses.append(_held_out_loss(model, fold))
    model.scale.fill_(1.0)
    return set_scale(model, losses)


def _validate(model: Generative, fold: Fold) -> dict[str, float]:
    """Return NDCG@10 on at most `JUDGED` held-out events, by beam search, and the mean loss (nats) on all of them."""
    begin = fold.begin
    rows = np.flatnonzero(np.arange(len(fold.sequences.item)) >= np.repeat(begin, fold.sequences.lengths()))
    only = np.sort(np.random.default_rng(0).permutation(rows)[:JUDGED])
    ranks = rank_generative(model, fold.sequences, begin, width=JUDGING, only=only).rank
    return {"ndcg_at_10": float(ndcg(ranks).mean()) if len(ranks) else 0.0, "nll": _held_out_loss(model, fold)}


@torch.no_grad()
def _held_out_loss(model: Generative, fold: Fold) -> float:
    """Return the mean negative log-likelihood of the held-out rows, nats."""
    model.eval()
    part = windows(fold.sequences, model.max_len, stride_of(model), fold.begin)
    parts = [_nll(model, fold.sequences, part[batch]) for batch in batches(part, 20_000)]
    return float(torch.cat(parts).mean()) if parts else 0.0
