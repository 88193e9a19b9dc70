"""The reference: the strongest model of behaviour, transformer and closed form with item knowledge, at any event.

Two of each are fitted, as in production: one without the last tenth of the training part, for the `training` moments
that lie there, and one with all of it, for the moments of the last fifth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.evidence.ease import NEIGHBOURS, RIDGE, Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.measuring.protocols import Split
from models.scorers import training
from models.scorers.backbone import Backbone
from models.scorers.fusion import Evidence
from models.scorers.ranks import hidden_before, seen_pairs
from models.scorers.snapshots import before
from schemas.files import written_whole
from schemas.settings import FitSettings

GAINS = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
TEMPERATURES = (1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.52, 0.45, 0.39, 0.33, 0.28, 0.23)
HALF_LIFE = 6.0  # of the history, in items; what calibration chooses on Amazon Beauty
PART = 256  # rows scored at a time: 12 MB per thousand items


@dataclass(frozen=True, slots=True)
class Model:
    """A transformer and a closed form that were fitted on the same events."""

    backbone: Backbone
    affinity: Ease


@dataclass(frozen=True, slots=True)
class Prepared:
    """What scoring m events of `sequences` needs, small enough to keep.

    Args:
        rows: (m,) rows of the events; each is predicted from its user's rows before it.
        hidden: (m, d) states of the transformer.
        evidence: of the closed form.
        early: whether the model without the last tenth of the training part was used.
    """

    rows: IntArray
    hidden: Tensor
    evidence: Evidence
    early: bool

    def __getitem__(self, at: IntArray) -> Prepared:
        place = torch.from_numpy(at)
        return Prepared(self.rows[at], self.hidden[place], self.evidence[place], self.early)


@dataclass(frozen=True)
class Behaviour:
    """Scores events by behaviour alone.

    Args:
        sequences: all events by user.
        early, late: models without and with the last tenth of the training part.
        gain: weight of the closed form.
        temperature: factor of all logits.
    """

    sequences: Sequences
    early: Model
    late: Model
    gain: float = 0.0
    temperature: float = 1.0

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return self.early.backbone.n_items

    @torch.no_grad()
    def prepare(self, rows: IntArray, *, early: bool) -> Prepared:
        """Return what scoring these events takes, from all that came before each of them."""
        model = self.early if early else self.late
        order = np.argsort(rows, kind="stable")
        unique, place = np.unique(rows[order], return_inverse=True)
        _, hidden = hidden_before(model.backbone, self.sequences, self.sequences.offsets[:-1], rows=unique)
        back = np.empty(len(rows), np.int64)
        back[order] = place
        evidence = model.affinity.evidence(before(self.sequences, rows, model.backbone.max_len))
        return Prepared(rows, hidden[torch.from_numpy(back)], evidence, early)

    def parts(self, prepared: Prepared, size: int = PART) -> Iterator[tuple[IntArray, Tensor]]:
        """Yield indices of events and their logits (b, n_items), items that the user has had at −∞."""
        model = self.early if prepared.early else self.late
        side = model.backbone.item_side()
        for part in torch.arange(len(prepared.rows)).split(size):
            logits = model.backbone.scores(prepared.hidden[part], side)
            found = prepared.evidence[part]
            logits.scatter_add_(1, found.items.clamp(min=0), self.gain * torch.where(
                found.items >= 0, found.weights, 0.0))
            at = part.numpy()
            rows = prepared.rows[at]
            low = self.sequences.offsets[self.sequences.user(rows)]
            logits[seen_pairs(self.sequences, low, rows)] = -torch.inf
            yield at, logits.mul_(self.temperature)

    def logits(self, prepared: Prepared) -> Tensor:
        """Return the logits of all events, (m, n_items)."""
        out = torch.empty(len(prepared.rows), self.n_items)
        for at, logits in self.parts(prepared):
            out[torch.from_numpy(at)] = logits
        return out


def fit(
    split: Split, settings: FitSettings, max_len: int, knowledge: ItemKnowledge, parts: Parts,
    folder: Path, keep: training.Keep | None = None, say: Callable[[str], None] = lambda _: None,
    transformer: bool = True,
) -> Behaviour:
    """Fit the models; `gain` and `temperature` are not chosen yet.

    Args:
        folder: where closed forms are kept.
        transformer: False = an untrained one, whose logits are cut to 0: the closed form alone.
    """
    fold = split.fold
    if transformer:
        early = training.train_reference(
            fold, settings, max_len, lambda done, most, about: say(
                f"transformer: epoch {done} of {most}, NDCG@10 {about['ndcg_at_10']:.4f}"), keep)[0]
        late = training.extend(early, fold, settings, keep=keep) if split.extends else early
    else:
        early = late = _silent(fold.n_items, settings, max_len)
    say("closed form")
    forms = [closed_form(events, fold.n_items, knowledge, parts, folder)
             for events in (fold.training(), fold.sequences)]
    return Behaviour(split.test, Model(early, forms[0]), Model(late, forms[1]))


def closed_form(sequences: Sequences, n_items: int, knowledge: ItemKnowledge, parts: Parts, folder: Path) -> Ease:
    """Return the closed form, fitted once and kept in `folder`."""
    digest = hashlib.sha256(repr((n_items, parts, NEIGHBOURS, RIDGE)).encode())
    for column in (sequences.item, sequences.offsets, knowledge.encoded):
        digest.update(b"" if column is None else np.ascontiguousarray(column).tobytes())
    digest.update("\n".join(knowledge.joined()).encode())
    path = folder / f"{digest.hexdigest()[:24]}.safetensors"
    if path.is_file():
        kept = load_file(path)
        return Ease(kept["neighbours"], kept["weights"], HALF_LIFE, parts)
    found = replace(Ease.fit(sequences, n_items, knowledge, parts), half_life=HALF_LIFE)
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as scratch:
        save_file({"neighbours": found.neighbours.contiguous(), "weights": found.weights.contiguous()}, scratch)
    return found


def _silent(n_items: int, settings: FitSettings, max_len: int) -> Backbone:
    model = Backbone(n_items, settings.dim, 1, settings.heads, max_len, 0.0)
    model.scale.zero_()
    return model.eval().requires_grad_(False)
