"""Training of a composition: likelihood of the events after a moment, with the objective's bound on harm.

Backbone, source and fusion are trained together on snapshots, at the scale of logits that scorers are trained with. The
best epoch on held-out events is kept if it is better than the start by more than chance (`models.knowledge.judging`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.compute.devices import Place, place
from models.data.dataset import IntArray
from models.data.fold import Fold
from models.data.sequences import Sequences
from models.knowledge.composition import Composed
from models.knowledge.forward import run, untempered
from models.knowledge.judging import Held, better, judge
from models.knowledge.objectives import Losses, Objective
from models.scorers.snapshots import draw

Progress = Callable[[int, int, dict[str, float]], None]

BATCH = 16  # snapshots per step
LEARNING_RATE = 2e-3
BACKBONE_RATE = 0.1  # of the learning rate: the backbone is already trained, and there are few snapshots
MASKED_RATE = 0.05  # of the learning rate: LoRA trains at 1e-4
WEIGHT_DECAY = 0.05
WARMUP = 20  # steps
DECAY = 0.98  # of the weights' running average
FEW = 192  # snapshots per epoch without a source; as many as for sources that train through the language model


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Training settings of a composition.

    Args:
        epochs: number of epochs, with `snapshots` moments each.
        objective: the objective, with its dual variable.
        trains_backbone: False = train only source and fusion. Knowledge learns less, and more is lost, if the scorer is
            trained on the same few windows (docs/log.md, 2026-11-28).
        none_is_an_epoch: keep the initial weights if no epoch is better on held-out events by more than chance.
        seed: seed of sampling and dropout.
        device: training device (`models.compute.devices.place`).
        snapshots: snapshots per epoch; None = the source's value.
    """

    epochs: int
    objective: Objective
    trains_backbone: bool = True
    none_is_an_epoch: bool = True
    seed: int = 0
    device: str = "cpu"
    snapshots: int | None = None


def train(model: Composed, fold: Fold, plan: TrainingPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Train a composition in place and keep the epoch with the best held-out likelihood, or the start.

    A trained backbone gets the temperature of that epoch; a scorer that is not trained keeps its own.

    Returns:
        Figures of that epoch (`models.knowledge.judging.EpochOutcome`; C; λ), seconds, steps, and "history" with
        one entry per epoch.
    """
    began = time.monotonic()
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    training = fold.training()
    here = place(plan.device)
    if here.ranks > 1:
        torch.manual_seed(plan.seed + here.rank)  # for dropout
    model.to(here.device)
    model.backbone.requires_grad_(plan.trains_backbone)
    for part in (model.source, model.fusion):
        if part is not None:
            part.requires_grad_(True)  # it may share weights with the backbone
    steps = _Steps(model)
    held = Held.of(fold, model, BATCH, np.random.default_rng(plan.seed))
    start = judge(model, held)
    now = here.agree(start.figures())
    plan.objective.start(now["constraint"])
    history = [now | plan.objective.log() | {"epoch": 0.0}]
    best, kept, chosen = history[0], _weights(model), plan.none_is_an_epoch
    snapshots = plan.snapshots or (model.source.snapshots if model.source is not None else FEW)
    total = plan.epochs * -(-snapshots // BATCH)
    for epoch in range(plan.epochs):
        with untempered(model):
            for rows in _chunks(_drawn(training, snapshots, rng)):
                _step(model, training, rows, plan, steps, here)
                if progress is not None:
                    progress(min(steps.taken, total), total, {"loss": steps.loss})
        raw = steps.average()
        now = here.agree(judge(model, held).figures(start))
        plan.objective.after_epoch(now["constraint"])
        history.append(now | plan.objective.log() | _log(model) | {"epoch": epoch + 1.0})
        enough = not plan.none_is_an_epoch or better(now, model.source is not None)
        if not chosen or (enough and now["nll"] < best["nll"]):
            best, kept, chosen = history[-1], _weights(model), True
        steps.set(raw)
    _trainable(model).load_state_dict(kept)
    if plan.trains_backbone and best["epoch"]:
        model.backbone.scale.mul_(best["factor"] / history[0]["factor"])
    model.to("cpu").eval().requires_grad_(False)
    return best | {"seconds": time.monotonic() - began, "steps": float(steps.taken), "history": history}


def _step(
    model: Composed, training: Sequences, rows: IntArray, plan: TrainingPlan, steps: _Steps, here: Place,
) -> None:
    """Take one step on the moments before `rows` (B,)."""
    model.train()
    mine = here.share(rows)
    if not len(mine):
        steps.take(None, None, here)
        return
    losses = _losses(model, training, mine, here, plan.objective.needs_plain)
    loss = plan.objective.loss(losses)
    if model.source is not None:
        loss = loss + model.source.auxiliary().to(loss.device)
    share, masked = len(mine) / len(rows), plan.objective.masked(losses)
    steps.take(loss * share, masked * share if masked is not None else None, here)
    steps.loss = float(loss.detach())


class _Steps:
    """The optimiser of a composition's trainable weights, and their running average."""

    def __init__(self, model: Composed) -> None:
        self.taken, self.loss = 0, 0.0
        self.masked = model.source.masked() if model.source is not None else []
        for weight in self.masked:
            weight.requires_grad_(True)
        known = {id(weight) for weight in self.masked}
        self.weights = list(self.masked)
        groups = [{"params": self.masked, "rate": MASKED_RATE}]
        # The fusion may be part of the backbone; the first group that contains a weight owns it.
        for part, rate in ((model.source, 1.0), (model.fusion, 1.0), (model.backbone, BACKBONE_RATE)):
            own = [w for w in part.parameters() if w.requires_grad and id(w) not in known] if part is not None else []
            known |= {id(weight) for weight in own}
            self.weights += own
            groups.append({"params": own, "rate": rate})
        self._optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
            betas=(0.9, 0.98))
        self._averaged = [weight.detach().clone() for weight in self.weights]

    def take(self, loss: Tensor | None, masked_loss: Tensor | None, here: Place) -> None:
        """Take one step. Masked weights use only `masked_loss` (None = no update); no loss = no share."""
        self._optimizer.zero_grad()
        masked_gradients: tuple[Tensor | None, ...] = (None,) * len(self.masked)
        if self.masked and masked_loss is not None:
            masked_gradients = torch.autograd.grad(masked_loss, self.masked, retain_graph=True, allow_unused=True)
        if loss is not None:
            loss.backward()
        for weight, gradient in zip(self.masked, masked_gradients, strict=True):
            weight.grad = gradient
        here.sum_gradients(self.weights)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.taken += 1
        for group in self._optimizer.param_groups:
            group["lr"] = LEARNING_RATE * group["rate"] * min(1.0, self.taken / WARMUP)
        self._optimizer.step()
        share = 1 - min(DECAY, self.taken / (10 + self.taken))
        torch._foreach_lerp_(self._averaged, [weight.detach() for weight in self.weights], share)

    def average(self) -> list[Tensor]:
        """Replace the weights by their running average and return the previous values."""
        raw = [weight.detach().clone() for weight in self.weights]
        self.set(self._averaged)
        return raw

    @torch.no_grad()
    def set(self, values: list[Tensor]) -> None:
        """Set the weights to these values."""
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)


def _losses(
    model: Composed, sequences: Sequences, rows: IntArray, here: Place, plain: bool = False,
) -> Losses:
    """Return the losses (m,) of the events after the moments before `rows` (B,)."""
    with here.autocast():
        part = run(model, sequences, rows, here)
        fused = model.fuse(part.hidden, part.vectors[part.where] if part.vectors is not None else None)
        logits = model.backbone.scores(fused, part.side)
        without = model.backbone.scores(part.hidden, part.side) if plain else None

    # New items are not used as negatives in training: the model would learn to score them low.
    def nll(scored: Tensor) -> Tensor:
        return F.cross_entropy(
            scored.float().masked_fill(model.backbone.fresh, -torch.inf), part.target, reduction="none")

    return Losses(nll(logits), nll(part.reference), nll(without) if without is not None else None)


def _drawn(sequences: Sequences, n: int, rng: np.random.Generator) -> IntArray:
    """Return n rows with a history; if there are fewer, they are repeated."""
    rows = draw(sequences, n, rng)
    return np.resize(rows, n) if len(rows) else rows


def _chunks(rows: IntArray) -> list[IntArray]:
    return [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]


def _trainable(model: Composed) -> nn.ModuleDict:
    parts = {"backbone": model.backbone, "source": model.source, "fusion": model.fusion}
    return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})


def _weights(model: Composed) -> dict[str, Tensor]:
    return copy.deepcopy(_trainable(model).state_dict())


def _log(model: Composed) -> dict[str, float]:
    return model.source.log() if model.source is not None else {}
