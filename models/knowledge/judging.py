"""Held-out events judge a composition: likelihood and NDCG@10, with the user's own knowledge and with others'.

Likelihood is compared at the best temperature of each state of training, never at the start's. A scorer that has seen
its training events a few times is too sure of itself on new ones, so `models.scorers.training.temper` scales its logits
down. Every further step on training events makes it surer again: at the start's scale held-out likelihood falls with
every epoch even if knowledge is identically zero (Beauty: 8.175 → 8.307 → 8.434 nats), and no knowledge can win. One
number per state is fitted on one half of the users and used for the other half, so its choice is not part of the gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.compute.devices import Place
from models.data.dataset import FloatArray, IntArray
from models.data.fold import Fold
from models.data.sequences import Sequences
from models.knowledge.composition import Composed
from models.knowledge.forward import run, span_of
from models.measuring.harm import DELTA
from models.measuring.metrics import ndcg
from models.scorers.ranks import seen_pairs
from models.scorers.snapshots import regular

JUDGED = 2000  # held-out events at least, where there are that many; NDCG@10 then has a standard error of about .002
NODES = np.array([-0.6, -0.3, 0.0, 0.3, 0.6])  # log of the factors of the scale at which losses are computed
FACTORS = np.linspace(NODES[0], NODES[-1], 241)  # log of the factors that are compared, by interpolation
OWN, OTHER, ZERO, NONE, REFERENCE = range(5)  # whose knowledge an event is scored with
NAMES = ("", "_other", "_zero", "_without_knowledge", "_reference")


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out moments and the events after them. Every event is judged once.

    Args:
        sequences: the fold's sequences.
        chunks: rows of the moments, in batches.
        half: (users,) bool: which users fit the temperature for the others.
    """

    sequences: Sequences
    chunks: list[IntArray]
    half: np.ndarray

    @classmethod
    def of(cls, fold: Fold, model: Composed, batch: int, rng: np.random.Generator) -> Held:
        """Draw moments until `JUDGED` events follow them or there are no more."""
        span = span_of(model)
        rows = rng.permutation(regular(fold.sequences, fold.begin, span))
        end = fold.sequences.offsets[np.searchsorted(fold.sequences.offsets, rows, "right")]
        events = np.cumsum(np.minimum(rows + span, end) - rows)
        rows = rows[: int(np.searchsorted(events, JUDGED)) + 1]
        users = len(fold.sequences.offsets) - 1
        return cls(
            fold.sequences, [rows[at : at + batch] for at in range(0, len(rows), batch)],
            rng.permutation(users) % 2 == 0)


@dataclass(frozen=True, slots=True)
class EpochOutcome:
    """Losses and NDCG@10 of m held-out events at one state of training.

    Args:
        user: (m,).
        nll: (5, m) by `OWN` … `REFERENCE`, nats, each event at the temperature fitted on the other half of the users.
        ndcg: (5, m) NDCG@10 without the items the user has had.
        factor: of the scorer's scale, fitted on all events.
    """

    user: IntArray
    nll: FloatArray
    ndcg: FloatArray
    factor: float

    def figures(self, start: EpochOutcome | None = None) -> dict[str, float]:
        """Return means, C, and the gains over the start and over another user's knowledge with their standard errors.

        Args:
            start: the outcome before training; None = this is it.
        """
        if not len(self.user):
            return dict.fromkeys(FIGURES, 0.0)
        start = start or self
        shortfall = np.maximum(self.nll[OWN] - self.nll[REFERENCE] - DELTA, 0)
        out = {f"nll{name}": float(self.nll[row].mean()) for row, name in enumerate(NAMES)}
        out |= {f"ndcg_at_10{name}": float(self.ndcg[row].mean()) for row, name in enumerate(NAMES)}
        out |= {"constraint": float(shortfall.mean()), "factor": self.factor, "events": float(len(self.user))}
        for name, gain in (
            ("gain", start.nll[OWN] - self.nll[OWN]), ("ndcg_gain", self.ndcg[OWN] - start.ndcg[OWN]),
            ("own_gain", self.nll[OTHER] - self.nll[OWN]), ("knowledge_gain", self.nll[ZERO] - self.nll[OWN]),
            ("own_ndcg_gain", self.ndcg[OWN] - self.ndcg[OTHER]),
        ):
            out |= {name: float(gain.mean()), f"{name}_error": standard_error(self.user, gain)}
        return out


GAINS = ("gain", "ndcg_gain", "own_gain", "knowledge_gain", "own_ndcg_gain")
FIGURES = (
    *(f"nll{name}" for name in NAMES), *(f"ndcg_at_10{name}" for name in NAMES), "constraint", "factor", "events",
    *(f"{name}{error}" for name in GAINS for error in ("", "_error")))


def better(figures: dict[str, float], knows: bool) -> bool:
    """Return whether an epoch is better than the start by more than chance: likelihood up, NDCG@10 not down.

    One standard error each: without it four epochs of noise would find a "best" one. A trained scorer also improves by
    further steps, so with a source (`knows`) the same events must also be likelier with the user's own knowledge than
    with another user's and with zero.
    """
    gains = ("gain", "own_gain", "knowledge_gain") if knows else ("gain",)
    return figures["ndcg_gain"] > -figures["ndcg_gain_error"] and all(
        figures[name] > figures[f"{name}_error"] for name in gains)


def standard_error(user: IntArray, gain: FloatArray) -> float:
    """Return the standard error of the mean of gains (m,) whose users (m,) are independent, their events are not."""
    _, place = np.unique(user, return_inverse=True)
    sums = np.bincount(place, gain - gain.mean())
    return float(np.sqrt(np.square(sums).sum()) / len(gain))


@torch.no_grad()
def judge(model: Composed, held: Held) -> EpochOutcome:
    """Score the held-out events with the user's own knowledge, with another user's, with zero and with none."""
    model.eval()
    here = Place(next(model.backbone.parameters()).device)
    users, losses, gains = [np.zeros(0, np.int64)], [np.zeros((5, len(NODES), 0))], [np.zeros((5, 0))]
    for rows in held.chunks:
        with here.autocast():
            part = run(model, held.sequences, rows, here)
        user = np.searchsorted(held.sequences.offsets, rows, "right") - 1
        at, own = part.where.cpu().numpy(), part.vectors
        each = (own, None if own is None else own[others(user)], None if own is None else torch.zeros_like(own), None)
        states = [model.fuse(part.hidden, None if made is None else made[part.where]) for made in each]
        logits = [model.backbone.scores(state, part.side).float() for state in states]
        logits.append(part.reference.float())
        pairs = seen_pairs(held.sequences, held.sequences.offsets[user[at]], part.rows)
        seen = pairs[0].to(here.device), pairs[1].to(here.device)
        users.append(user[at])
        losses.append(np.stack([_losses(one, part.target) for one in logits]))
        gains.append(np.stack([ndcg(_ranks(one, part.target, seen)) for one in logits]))
    user, loss = np.concatenate(users), np.concatenate(losses, 2)
    through = np.linalg.solve(np.vander(NODES), loss.transpose(1, 0, 2).reshape(len(NODES), -1))
    curve = through.reshape(len(NODES), 5, len(user)).astype(np.float64)  # a polynomial of every event's loss
    nll = np.zeros((5, len(user)))
    half = held.half[user]
    for judged in (half, ~half):
        nll[:, judged] = _at(curve[..., judged], _factors(curve[..., ~judged]))
    return EpochOutcome(user, nll, np.concatenate(gains, 1), float(np.exp(_factors(curve)[OWN])))


def others(user: IntArray) -> Tensor:
    """Return for each of B moments the place of the next moment of another user; its own if there is none."""
    places = np.arange(len(user))
    found = places.copy()
    for shift in range(len(user) - 1, 0, -1):
        after = (places + shift) % len(user)
        found = np.where(user[after] != user, after, found)
    return torch.from_numpy(found)


def _losses(logits: Tensor, target: Tensor) -> FloatArray:
    """Return losses (nodes, m), nats, of targets (m,) for logits (m, n) with their scale times each node's factor."""
    own = logits.gather(1, target[:, None]).squeeze(1)
    return torch.stack(
        [(factor * logits).logsumexp(1) - factor * own for factor in np.exp(NODES).tolist()]).double().cpu().numpy()


def _ranks(logits: Tensor, target: Tensor, seen: tuple[Tensor, ...]) -> IntArray:
    """Return ranks (m,) of targets without the `seen` (event, item) pairs; a repeated item ranks last."""
    own = logits.gather(1, target[:, None])
    logits[seen] = -torch.inf
    ranks = (logits >= own).sum(1) - 1
    repeated = torch.isinf(logits.gather(1, target[:, None]).squeeze(1))
    return torch.where(repeated, logits.shape[1], ranks).cpu().numpy()


def _factors(curve: FloatArray) -> FloatArray:
    """Return the log factor (5,) with the lowest mean loss; 0 without events. All knowledge shares its own user's.

    Knowledge of another user, zero and none are what would happen in the same system, so they keep its scale.
    """
    if not curve.shape[2]:
        return np.zeros(5)
    mean = np.vander(FACTORS, len(NODES)) @ curve.mean(2)  # factors, 5
    best = FACTORS[mean.argmin(0)]
    return np.array([best[OWN]] * 4 + [best[REFERENCE]])


def _at(curve: FloatArray, factors: FloatArray) -> FloatArray:
    """Return losses (5, m) at a log factor for each of the five."""
    return np.einsum("kj,jkm->km", np.vander(factors, len(NODES)), curve)
