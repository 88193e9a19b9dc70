"""Training of a composition: likelihood of the events after a moment, with the objective's bound on harm.

Backbone, source and fusion are trained together on snapshots, and the best epoch on held-out events is kept.
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
from models.data.sequences import Sequences, tensors
from models.knowledge.composition import Composed
from models.knowledge.objectives import Losses, Objective
from models.knowledge.sources import moments_at
from models.scorers.snapshots import SPAN, after, draw, slots_at

Progress = Callable[[int, int, dict[str, float]], None]

BATCH = 16  # snapshots per step
LEARNING_RATE = 2e-3
BACKBONE_RATE = 0.1  # of the learning rate: the backbone is already trained, and there are few snapshots
MASKED_RATE = 0.05  # of the learning rate: LoRA trains at 1e-4
WEIGHT_DECAY = 0.05
JUDGED = 192  # held-out snapshots that update λ and choose the epoch
WARMUP = 20  # steps
DECAY = 0.98  # of the weights' running average
FEW = 192  # snapshots per epoch without a source; as many as for sources that train through the language model


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Training settings of a composition.

    Args:
        epochs: number of epochs, with `snapshots` moments each.
        objective: the objective, with its dual variable.
        trains_backbone: False = train only source and fusion.
        none_is_an_epoch: keep the initial weights if no epoch is better on held-out events.
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
    """Train a composition in place and keep the epoch with the best held-out likelihood.

    Returns:
        Metrics of that epoch (nats; C; λ), seconds, steps, and "history" with one entry per epoch.
    """
    began = time.monotonic()
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    training = fold.training()
    here = place(plan.device)
    device = here.device
    if here.ranks > 1:
        torch.manual_seed(plan.seed + here.rank)  # for dropout
    model.to(device)
    model.backbone.requires_grad_(plan.trains_backbone)
    if model.fusion is not None:
        model.fusion.requires_grad_(True)  # it may be part of the backbone
    steps = _Steps(model)
    judged = _chunks(draw(fold.sequences, JUDGED, rng, fold.begin))
    now = here.agree(judge(model, fold, judged))
    plan.objective.start(now["constraint"])
    history = [now | plan.objective.log() | {"epoch": 0.0}]
    best, kept = history[0], _weights(model)
    chosen = plan.none_is_an_epoch
    snapshots = plan.snapshots or (model.source.snapshots if model.source is not None else FEW)
    total = plan.epochs * -(-snapshots // BATCH)
    for epoch in range(plan.epochs):
        for rows in _chunks(_drawn(training, snapshots, rng)):
            model.train()
            mine = here.share(rows)
            if not len(mine):
                steps.take(None, None, here)
                continue
            losses = _losses(model, training, mine, here, plan.objective.needs_plain)
            loss = plan.objective.loss(losses)
            if model.source is not None:
                loss = loss + model.source.auxiliary().to(loss.device)
            share, masked = len(mine) / len(rows), plan.objective.masked(losses)
            steps.take(loss * share, masked * share if masked is not None else None, here)
            if progress is not None:
                progress(min(steps.taken, total), total, {"loss": float(loss.detach())})
        raw = steps.average()
        now = here.agree(judge(model, fold, judged))
        plan.objective.after_epoch(now["constraint"])
        history.append(now | plan.objective.log() | _log(model) | {"epoch": epoch + 1.0})
        if not chosen or now["nll"] < best["nll"]:
            best, kept, chosen = history[-1], _weights(model), True
        steps.set(raw)
    _trainable(model).load_state_dict(kept)
    model.to("cpu").eval().requires_grad_(False)
    return best | {"seconds": time.monotonic() - began, "steps": float(steps.taken), "history": history}


class _Steps:
    """The optimiser of a composition's trainable weights, and their running average."""

    def __init__(self, model: Composed) -> None:
        self.taken = 0
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
    device = here.device
    # A window must reach back to the moment, so at least half of it is context.
    span = min(SPAN, max(1, model.reference.max_len // 2))
    part = after(sequences, rows, model.reference.max_len, span)
    tokens, where, slots, predicted = tensors(sequences, part)
    tokens, where, slots = tokens.to(device), where.to(device), slots.to(device)
    target = torch.from_numpy(sequences.item[predicted.numpy()]).to(device)
    with here.autocast():
        with torch.no_grad():
            training, _ = model.reference.training, model.reference.eval()
            ref_hidden = model.reference(tokens)
            ref_logits = model.reference.scores(ref_hidden[where, slots])
            model.reference.train(training)
        vectors = None
        if model.source is not None:
            state = ref_hidden[torch.arange(len(part), device=device), slots_at(sequences, part)]
            known = model.knowledge(moments_at(sequences, part.first, state, model.source.items))
            vectors = known[where] if known is not None else None
        side = model.backbone.item_side()
        hidden = model.backbone(tokens, side)[where, slots]
        fused = model.fuse(hidden, vectors)
        logits = model.backbone.scores(fused, side)
        without = model.backbone.scores(hidden, side) if plain else None
    fresh = model.backbone.fresh if model.training else torch.zeros_like(model.backbone.fresh)
    # New items are not used as negatives in training: the model would learn to score them low.
    def nll(scored: Tensor) -> Tensor:
        return F.cross_entropy(scored.float().masked_fill(fresh, -torch.inf), target, reduction="none")

    return Losses(nll(logits), nll(ref_logits), nll(without) if without is not None else None)


@torch.no_grad()
def judge(model: Composed, fold: Fold, judged: list[IntArray]) -> dict[str, float]:
    """Return held-out losses (nats): the composition with and without knowledge, and the reference; and C."""
    model.eval()
    here = Place(next(model.backbone.parameters()).device)
    sums, count = np.zeros(4), 0
    for rows in judged:
        found = _losses(model, fold.sequences, rows, here, plain=True)
        assert found.plain is not None  # noqa: S101 - requested above
        parts = (found.nll, found.plain, found.reference, found.shortfall())
        sums += [float(part.sum()) for part in parts]
        count += len(found.nll)
    names = ("nll", "nll_without_knowledge", "nll_reference", "constraint")
    return dict(zip(names, (sums / max(1, count)).tolist(), strict=True))


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
