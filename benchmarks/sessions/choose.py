"""ChosenIdea of an idea and its parameters on `training` moments, with cross-validation of the choice itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.sessions.ideas import Idea, Material, features
from models.data.dataset import FloatArray, IntArray
from models.measuring.intervals import paired_interval
from models.measuring.metrics import ndcg, recall

FOLDS = 10
LEAST = -1e4  # logit of an item that the user has had, where −∞ would spoil a product
CANDIDATES = 150  # of a moment that the learned re-ranker learns from, by behaviour and with the match
FLOOR = -30.0  # of a candidate's logit below the moment's largest
SHRINK = 1.0  # a weight of 1 costs as much as a nat


@dataclass(frozen=True, slots=True)
class Targets:
    """What was chosen at m moments: pairs of moment and item, several where events have the same time.

    Args:
        moment: (t,) index of each pair's moment.
        item: (t,) item rows.
        size: m.
    """

    moment: IntArray
    item: IntArray
    size: int

    def at(self, moments: IntArray) -> Targets:
        """Return the pairs of some moments, ascending, which are counted from 0."""
        kept = np.isin(self.moment, moments)
        return Targets(np.searchsorted(moments, self.moment[kept]), self.item[kept], len(moments))

    def mean(self, value: FloatArray) -> FloatArray:
        """Return the mean over each moment's pairs, (m,), of a value per pair (t,)."""
        return np.bincount(self.moment, value, self.size) / np.bincount(self.moment, minlength=self.size)


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of m moments, each (m,): NDCG@10, Recall@10, NDCG over the whole catalogue, log-likelihood (nats)."""

    ndcg: FloatArray
    recall: FloatArray
    whole: FloatArray
    logp: FloatArray


def figures(logits: Tensor, targets: Targets) -> Figures:
    """Return what logits (m, n) are worth; an item that the user has had is a miss, and has no likelihood (0)."""
    at, item = torch.from_numpy(targets.moment), torch.from_numpy(targets.item)
    own = logits[at, item]
    rank = np.empty(len(own), np.int64)
    for part in torch.arange(len(own)).split(256):
        rank[part.numpy()] = ((logits[at[part]] >= own[part, None]).sum(-1) - 1).numpy()
    repeated = (own == -torch.inf).numpy()
    rank[repeated] = logits.shape[1]
    logp = (own - logits.logsumexp(-1)[at]).double().numpy()
    return Figures(*(targets.mean(value) for value in (
        ndcg(rank), recall(rank), np.where(repeated, 0.0, 1 / np.log2(rank + 2)), np.where(repeated, 0.0, logp))))


@dataclass(frozen=True, slots=True)
class ChosenIdea:
    """An idea's best parameters, and what choosing them is worth.

    Args:
        weights: the best on all moments.
        inside: NDCG@10 gained on the moments they were chosen on: optimistic.
        crossed: the same with its interval, where each tenth of the moments uses what the other nine chose.
        whole: like `crossed`, of NDCG over the whole catalogue, which decides the choice.
    """

    idea: Idea
    weights: dict[str, float]
    inside: float
    crossed: tuple[float, float, float]
    whole: tuple[float, float, float]

    def record(self) -> dict[str, Any]:
        """Return the choice as JSON."""
        names = ("mean", "low", "high")
        return {"idea": self.idea.name, "weights": self.weights, "inside": self.inside,
                "crossed": dict(zip(names, self.crossed, strict=True)),
                "whole": dict(zip(names, self.whole, strict=True))}


def choose(
    idea: Idea, material: Material, targets: Targets, user: IntArray, base: Figures, seed: int = 0,
) -> ChosenIdea:
    """Choose an idea's parameters by the NDCG over the whole catalogue that it gains over behaviour alone.

    NDCG@10 is decided by one moment in twenty. On Amazon Beauty's 1,050 `training` moments no idea's gain in NDCG@10 is
    as large as two of its standard errors; over the whole catalogue gains of five standard errors show.
    """
    if idea.features:
        return _choose_learned(idea, material, targets, user, base, seed)
    candidates = idea.candidates()
    whole, top = np.empty((2, len(candidates), targets.size))
    for at, weights in enumerate(candidates):
        found = figures(idea.use(material, weights), targets)
        whole[at], top[at] = found.whole - base.whole, found.ndcg - base.ndcg
    fold = np.random.default_rng(seed).permutation(targets.size) % FOLDS
    gained, wholly = np.empty((2, targets.size))
    for out in range(FOLDS):
        best = int(whole[:, fold != out].mean(1).argmax())
        gained[fold == out], wholly[fold == out] = top[best, fold == out], whole[best, fold == out]
    best = int(whole.mean(1).argmax())
    return ChosenIdea(idea, candidates[best], float(top[best].mean()), paired_interval(user, gained),
                  paired_interval(user, wholly))


def _choose_learned(
    idea: Idea, material: Material, targets: Targets, user: IntArray, base: Figures, seed: int,
) -> ChosenIdea:
    fold = np.random.default_rng(seed).permutation(targets.size) % FOLDS
    material = replace(material, base=material.base.clamp(min=LEAST))  # −∞ · 0 would be no number
    table = _table(idea, material, targets)
    gained, wholly = np.empty((2, targets.size))
    for out in range(FOLDS):
        weights = learn(idea, *table, np.flatnonzero(fold != out))
        held = np.flatnonzero(fold == out)
        found = figures(idea.use(material[torch.from_numpy(held)], weights), targets.at(held))
        gained[held], wholly[held] = found.ndcg - base.ndcg[held], found.whole - base.whole[held]
    weights = learn(idea, *table, np.arange(targets.size))
    inside = figures(idea.use(material, weights), targets).ndcg - base.ndcg
    return ChosenIdea(idea, weights, float(inside.mean()), paired_interval(user, gained), paired_interval(user, wholly))


def _table(idea: Idea, material: Material, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the features of each moment's candidates, (m, c, f), and the share of each that was chosen, (m, c)."""
    chosen = torch.zeros_like(material.base)
    chosen[torch.from_numpy(targets.moment), torch.from_numpy(targets.item)] = 1.0
    chosen[material.base <= LEAST] = 0.0
    # What was chosen is no candidate by itself: among hard negatives only, behaviour's own logit would look misleading.
    best = torch.cat([part.topk(min(CANDIDATES, part.shape[1]), -1).indices
                      for part in (material.base, material.base + 2.0 * material.match())], 1)
    rows = torch.zeros_like(chosen).scatter_(1, best, 1.0).bool()
    width = int(rows.sum(1).max())
    place = (rows.float() + torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) * 0.5).topk(width, 1)
    found = features(material)
    values = torch.stack([found[name].gather(1, place.indices) for name in idea.features], -1)
    values[..., 0] = (values[..., 0] - values[..., 0].amax(1, keepdim=True)).clamp(min=FLOOR)
    share = chosen.gather(1, place.indices)
    return values, share / share.sum(1, keepdim=True).clamp(min=1.0)


def learn(idea: Idea, values: Tensor, share: Tensor, rows: IntArray) -> dict[str, float]:
    """Return the weights of an idea's features with the highest likelihood among candidates, shrunk towards 0.

    Args:
        values: (m, c, f) features, "behaviour" first.
        share: (m, c) of what was chosen.
        rows: the moments to learn from.
    """
    some = torch.from_numpy(rows)
    x, y = values[some], share[some]
    weights = torch.zeros(x.shape[-1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = x[..., 0] + x @ weights
        value = -(y * logits.log_softmax(-1)).sum() + SHRINK * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return dict(zip(idea.features, weights.tolist(), strict=True))


def best_of(choices: Sequence[ChosenIdea]) -> ChosenIdea:
    """Return the choice whose cross-validated gain over the whole catalogue is surest: by the interval's lower end."""
    return max(choices, key=lambda choice: choice.whole[1])
