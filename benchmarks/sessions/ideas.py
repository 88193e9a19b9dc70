"""Ways to use a user's text in ranking, each with candidates for its parameters. `choose` picks among them.

All start from the same material: logits by behaviour alone, and how well the text matches each item. Candidates are
tried on `training` moments only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Material:
    """What m moments have to rank n items with.

    Args:
        base: (m, n) logits by behaviour alone; −∞ = the user has had the item.
        words, encoder: (m, n) tf-idf cosine, and cosine of sentence encodings, of the user's text and the item's.
        written: (m, n) tf-idf cosine of the user's text and what a language model wrote of the item; without such
            texts the same as `words`.
        history: (m, n) like `written`, between what was written of the items of the user's history and the item.
        length: (m,) number of the user's earlier events.
    """

    base: Tensor
    words: Tensor
    encoder: Tensor
    written: Tensor
    history: Tensor
    length: Tensor

    def __getitem__(self, rows: Tensor) -> Material:
        return Material(self.base[rows], self.words[rows], self.encoder[rows], self.written[rows], self.history[rows],
                        self.length[rows])

    def match(self) -> Tensor:
        """Return all matches together, (m, n)."""
        return self.words + self.encoder.clamp(min=0.0) ** 3 + self.written

    def doubt(self) -> Tensor:
        """Return the entropy of behaviour's distribution, in nats from its mean of some 7.5, (m, 1)."""
        logp = self.base.log_softmax(-1)
        return -(logp.exp() * logp.clamp(min=-1e4)).sum(-1, keepdim=True) - 7.5


@dataclass(frozen=True, slots=True)
class Idea:
    """A way to use the text.

    Args:
        name: a short sentence part for the table.
        use: returns logits (m, n) from material and parameters.
        grid: candidates of each parameter.
        history: whether it reads `Material.history`, which takes the longest to make.
        features: of a learned idea: its weights are fitted, not tried (`choose.learn`).
    """

    name: str
    use: Callable[[Material, Weights], Tensor]
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    history: bool = False
    features: tuple[str, ...] = ()

    def candidates(self) -> list[dict[str, float]]:
        """Return all combinations of parameters."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


WEIGHTS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # logits per unit of match


def by_titles(material: Material, weights: Weights) -> Tensor:
    """Match the titles of items: words, and sentence encodings, as `models.evidence.user_text` does."""
    return material.base + weights["weight"] * (material.words + material.encoder.clamp(min=0.0) ** 3)


def by_written(material: Material, weights: Weights) -> Tensor:
    """Match the written keywords of items, too: both sides are written in one vocabulary."""
    return by_titles(material, {"weight": weights["titles"]}) + weights["written"] * material.written


def by_length(material: Material, weights: Weights) -> Tensor:
    """Trust the text more, or less, the longer the history."""
    factor = (material.length.float() / 5.0) ** weights["exponent"]
    return material.base + weights["weight"] * factor[:, None] * material.match()


def by_doubt(material: Material, weights: Weights) -> Tensor:
    """Trust the text more where behaviour is unsure."""
    return material.base + weights["weight"] * torch.exp(weights["slope"] * material.doubt()) * material.match()


def reranked(material: Material, weights: Weights) -> Tensor:
    """Re-order the reference's first items only."""
    top = min(int(weights["top"]), material.base.shape[1])
    least = material.base.topk(top, -1).values[:, -1:]
    return material.base + weights["weight"] * material.match() * (material.base >= least)


def mixed(material: Material, weights: Weights) -> Tensor:
    """Mix two distributions, behaviour's and the text's, instead of multiplying them: no item loses much.

    The least that an item keeps is log p by behaviour + log(1 − share).
    `behaviour` is how much the text's distribution follows behaviour, too.
    """
    text = weights["behaviour"] * material.base + material.match() / weights["temperature"]
    text = text.masked_fill(material.base == -torch.inf, -torch.inf)
    share = torch.tensor(weights["share"])
    return torch.logaddexp(material.base.log_softmax(-1) + torch.log1p(-share), text.log_softmax(-1) + share.log())


def novel(material: Material, weights: Weights) -> Tensor:
    """Count only what the text says beyond the history."""
    beyond = (material.match() - weights["known"] * material.history).clamp(min=0.0)
    return material.base + weights["weight"] * beyond


def contrasted(material: Material, weights: Weights) -> Tensor:
    """Subtract the history's match: behaviour's part has it already."""
    return material.base + weights["weight"] * (material.match() - weights["known"] * material.history)


def centred(material: Material, weights: Weights) -> Tensor:
    """Subtract an item's mean match with other users' texts: some items match every text."""
    return material.base + weights["weight"] * (material.match() - weights["centre"] * material.match().mean(0))


def standing_out(material: Material, weights: Weights) -> Tensor:
    """Count only how far a match exceeds the text's usual one, in its standard deviations."""
    match = material.match()
    beyond = ((match - match.mean(1, keepdim=True)) / match.std(1, keepdim=True).clamp(min=1e-6) - weights["least"])
    return material.base + weights["weight"] * beyond.clamp(min=0.0)


def features(material: Material) -> dict[str, Tensor]:
    """Return what the learned re-ranker weighs, each (m, n)."""
    return {
        "behaviour": material.base, "words": material.words, "encoder": material.encoder.clamp(min=0.0) ** 3,
        "written": material.written, "history": material.history,
        "length": material.written * torch.log(material.length.float() / 5.0)[:, None],
        "doubt": material.written * material.doubt()}


def learned(material: Material, weights: Weights) -> Tensor:
    """Weigh all of them, by weights that `choose.learn` has fitted."""
    found = features(material)
    return sum((weights[name] * found[name] for name in weights if name != "behaviour"),
               (1.0 + weights["behaviour"]) * material.base)  # −∞ stays −∞: the factor is above 0


IDEAS = (
    Idea("titles: words and encoder", by_titles, {"weight": WEIGHTS}),
    Idea("written keywords of items, too", by_written, {
        "titles": (0.0, 1.0, 2.0, 3.0), "written": (0.5, 1.0, 2.0, 3.0, 4.0)}),
    Idea("by the history's length", by_length, {"weight": WEIGHTS[1:-1], "exponent": (-0.5, 0.5)}),
    Idea("by behaviour's doubt", by_doubt, {"weight": WEIGHTS[1:-1], "slope": (-0.5, 0.5)}),
    Idea("re-ranking the first 100 or 500", reranked, {"weight": WEIGHTS[1:-1], "top": (100.0, 500.0)}),
    Idea("a mixture of distributions", mixed, {
        "share": (0.05, 0.1, 0.2, 0.3), "temperature": (0.12, 0.25, 0.5), "behaviour": (0.0, 0.5)}),
    Idea("only what the history does not say", novel, {"weight": WEIGHTS[1:-1], "known": (0.25, 0.5)}, history=True),
    Idea("less what the history says", contrasted, {"weight": WEIGHTS[1:-1], "known": (0.25, 0.5)}, history=True),
    Idea("less an item's usual match", centred, {"weight": WEIGHTS[1:-1], "centre": (0.5, 1.0)}),
    Idea("how far a match stands out", standing_out, {
        "weight": (0.1, 0.2, 0.35, 0.5, 0.75), "least": (0.0, 1.5, 3.0)}),
    Idea("a learned re-ranker", learned, history=True, features=(
        "behaviour", "words", "encoder", "written", "history", "length", "doubt")),
)
