"""Training a composition: likelihood of the events after a moment, under an objective's bound on harm.

Backbone, source and fusion are trained together on snapshots; the best epoch on held-out events is kept.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.composition import Composed, moments_at
from models.dataset import IntArray
from models.objectives import Losses, Objective
from models.sequences import Sequences, tensors
from models.snapshots import SPAN, after, draw
from models.training import Fold

Progress = Callable[[int, int, dict[str, float]], None]

BATCH = 16  # snapshots per step
LEARNING_RATE = 2e-3
BACKBONE_RATE = 0.1  # of the learning rate: it is trained already, and snapshots are few
WEIGHT_DECAY = 0.05
JUDGED = 192  # snapshots of held-out events that move λ and choose the epoch
WARMUP = 20  # steps
DECAY = 0.98  # of the weights' running average
FEW = 192  # snapshots per epoch where no source says: what a pass through a language model allows


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how a composition is trained.

    Args:
        epochs: over `snapshots` moments each.
        objective: of the loss, with its dual variable.
        trains_backbone: False = only source and fusion.
        none_is_an_epoch: keep the start where no epoch is better on held-out events.
        seed: of draws and dropout.
        device: where to train; "cuda" uses bfloat16 autocast.
        snapshots: per epoch; None = what the source says.
    """

    epochs: int
    objective: Objective
    trains_backbone: bool = True
    none_is_an_epoch: bool = True
    seed: int = 0
    device: str = "cpu"
    snapshots: int | None = None


def train(model: Composed, fold: Fold, plan: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """Train a composition in place; the best epoch by likelihood of held-out events is kept.

    Returns:
        metrics of the kept epoch (nats; C; λ), seconds, steps, and "history": one entry per epoch.
    """
    began = time.monotonic()
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    training = fold.training()
    device = torch.device(plan.device)
    model.to(device)
    model.backbone.requires_grad_(plan.trains_backbone)
    if model.fusion is not None:
        model.fusion.requires_grad_(True)  # it may be a part of the backbone
    own = [w for part in (model.source, model.fusion) if part is not None for w in part.parameters() if w.requires_grad]
    taken = {id(weight) for weight in own}
    scorer = [w for w in model.backbone.parameters() if w.requires_grad and id(w) not in taken]
    weights = own + scorer
    groups = [{"params": part, "rate": rate} for part, rate in ((own, 1.0), (scorer, BACKBONE_RATE)) if part]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    averaged = [weight.detach().clone() for weight in weights]
    judged = _chunks(draw(fold.sequences, JUDGED, rng, fold.begin))
    now = judge(model, fold, judged)
    plan.objective.start(now["constraint"])
    history = [now | plan.objective.log() | {"epoch": 0.0}]
    best, kept = history[0], _weights(model)
    chosen = plan.none_is_an_epoch
    snapshots = plan.snapshots or (model.source.snapshots if model.source is not None else FEW)
    each = -(-snapshots // BATCH)
    steps = 0
    for epoch in range(plan.epochs):
        for rows in _chunks(_drawn(training, snapshots, rng)):
            model.train()
            losses = _losses(model, training, rows, device)
            loss = plan.objective.loss(losses)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            steps += 1
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * group["rate"] * min(1.0, steps / WARMUP)
            optimizer.step()
            now_weights = [weight.detach() for weight in weights]
            torch._foreach_lerp_(averaged, now_weights, 1 - min(DECAY, steps / (10 + steps)))
            if progress is not None:
                progress(min(steps, plan.epochs * each), plan.epochs * each, {"loss": float(loss.detach())})
        raw = [weight.detach().clone() for weight in weights]
        _set(weights, averaged)
        now = judge(model, fold, judged)
        plan.objective.after_epoch(now["constraint"])
        history.append(now | plan.objective.log() | _log(model) | {"epoch": epoch + 1.0})
        if not chosen or now["nll"] < best["nll"]:
            best, kept, chosen = history[-1], _weights(model), True
        _set(weights, raw)
    _trainable(model).load_state_dict(kept)
    model.to("cpu").eval().requires_grad_(False)
    return best | {"seconds": time.monotonic() - began, "steps": float(steps), "history": history}


def _losses(model: Composed, sequences: Sequences, rows: IntArray, device: torch.device) -> Losses:
    """Return the losses (m,) of the events after the moments before `rows` (B,)."""
    # a window must reach back to the moment: half of what is read is context at least
    span = min(SPAN, max(1, model.reference.max_len // 2))
    part = after(sequences, rows, model.reference.max_len, span)
    tokens, where, slots, predicted = tensors(sequences, part)
    tokens, where, slots = tokens.to(device), where.to(device), slots.to(device)
    target = torch.from_numpy(sequences.item[predicted.numpy()]).to(device)
    # bfloat16 on a CPU without AMX is ten times slower than float32
    with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
        with torch.no_grad():
            training, _ = model.reference.training, model.reference.eval()
            ref_hidden = model.reference(tokens)
            ref_logits = model.reference.scores(ref_hidden[where, slots])
            model.reference.train(training)
        vectors = None
        if model.source is not None:
            state = ref_hidden[torch.arange(len(part), device=device), torch.from_numpy(part.first - part.start)]
            known = model.knowledge(moments_at(sequences, part.first, state, model.source.items))
            vectors = known[where] if known is not None else None
        side = model.backbone.item_side()
        hidden = model.backbone(tokens, side)[where, slots]
        fused = model.fuse(hidden, vectors)
        logits = model.backbone.scores(fused, side)
    fresh = model.backbone.fresh if model.training else torch.zeros_like(model.backbone.fresh)
    # New items are no negatives while training: that would teach that new items score low.
    nll = F.cross_entropy(logits.float().masked_fill(fresh, -torch.inf), target, reduction="none")
    reference = F.cross_entropy(ref_logits.float().masked_fill(fresh, -torch.inf), target, reduction="none")
    return Losses(nll, reference, fused, hidden, side[0], target, where)


@torch.no_grad()
def judge(model: Composed, fold: Fold, judged: list[IntArray]) -> dict[str, float]:
    """Return mean losses (nats) on held-out events: the composition's, the reference's, and C."""
    model.eval()
    device = next(model.backbone.parameters()).device
    sums, count = np.zeros(3), 0
    for rows in judged:
        found = _losses(model, fold.sequences, rows, device)
        sums += [float(found.nll.sum()), float(found.reference.sum()), float(found.shortfall().sum())]
        count += len(found.nll)
    names = ("nll", "nll_reference", "constraint")
    return dict(zip(names, (sums / max(1, count)).tolist(), strict=True))


def _drawn(sequences: Sequences, n: int, rng: np.random.Generator) -> IntArray:
    """Return n rows with a history; where there are fewer, all of them as often as it takes."""
    rows = draw(sequences, n, rng)
    return np.resize(rows, n) if len(rows) else rows


def _chunks(rows: IntArray) -> list[IntArray]:
    return [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]


def _trainable(model: Composed) -> nn.ModuleDict:
    parts = {"backbone": model.backbone, "source": model.source, "fusion": model.fusion}
    return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})


@torch.no_grad()
def _set(weights: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


def _weights(model: Composed) -> dict[str, Tensor]:
    return copy.deepcopy(_trainable(model).state_dict())


def _log(model: Composed) -> dict[str, float]:
    return model.source.log() if model.source is not None else {}
