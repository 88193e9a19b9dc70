"""What guards against a useless text, set on `training` moments with the product's own calibration.

The temperature of the logits with text, the trust radius, the bound at which the judge clips margins, the drift
threshold and the age at which knowledge is stale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.sessions.ageing import Course
from benchmarks.sessions.behaviour import PART
from benchmarks.sessions.choose import ChosenIdea, Targets
from benchmarks.sessions.ideas import Material
from benchmarks.sessions.world import World, best_temperature
from models.data.dataset import IntArray
from models.trust.radius import EPSILONS, ScoredEvents, calibrate_epsilon, margins_by_user
from models.trust.region import log_probabilities, trust_region
from schemas.calibration import Calibration
from schemas.settings import Settings
from streams.calibration.rehearsal import choose_ttl
from streams.calibration.thresholds import History, calibrate_drift, choose_margin_bound
from streams.decisions.planner import Planner
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from workers.training.fit import FALSE_ALARM_EVERY, PRIOR, SLACK, STALE_SHARE

USERS = 1000  # whose histories set the drift threshold and rehearse the time to live


@dataclass(frozen=True)
class Use:
    """How texts are used: the chosen idea, and the temperature that gives its logits the best likelihood."""

    choice: ChosenIdea
    temperature: float

    @classmethod
    def of(cls, choice: ChosenIdea, material: Material, targets: Targets) -> Use:
        """Choose the temperature on the moments the idea was chosen on."""
        return cls(choice, best_temperature(choice.idea.use(material, choice.weights), targets))

    def __call__(self, material: Material) -> Tensor:
        """Return logits (m, n) with text."""
        return self.choice.idea.use(material, self.choice.weights) * self.temperature


def radius_of(base: Tensor, fused: Tensor, targets: Targets, user: IntArray, length: IntArray, harm: float
              ) -> tuple[float, ScoredEvents]:
    """Return the trust radius that the product's calibration chooses, and what it was chosen from.

    Args:
        base, fused: (m, n) logits without and with text.
        user, length: (m,) of the moments.
        harm: allowed share of harmed users, see `calibrate_epsilon`.
    """
    at, item = torch.from_numpy(targets.moment), torch.from_numpy(targets.item)
    new = (base[at, item] != -torch.inf).numpy()
    at, item = at[new], item[new]
    ranks, gains, margins = [], [], []
    for part in torch.arange(len(at)).split(PART):
        ref, with_text = log_probabilities(base[at[part]]), log_probabilities(fused[at[part]])
        each, own = torch.arange(len(part)), item[part]
        margins.append((with_text - ref)[each, own].double().numpy())
        rank, gain = [], []
        for epsilon in EPSILONS:
            logp = trust_region(ref, with_text, torch.full((len(part),), epsilon))[0]
            rank.append(((logp >= logp[each, own][:, None]).sum(-1) - 1).numpy())
            gain.append((logp[each, own] - ref[each, own]).double().numpy())
        ranks.append(np.stack(rank, 1))
        gains.append(np.stack(gain, 1))
    margin = np.concatenate(margins)
    moment = targets.moment[new]
    scored = ScoredEvents(user[moment], length[moment], np.zeros(len(margin), np.int64), margin,
                          np.concatenate(ranks), np.concatenate(gains), margin)
    return calibrate_epsilon(scored, harm)[0], scored


def thresholds(world: World, vectors: ItemVectors, settings: Settings, epsilon: float, scored: ScoredEvents
               ) -> Calibration:
    """Return the thresholds of streams, calibrated on the training part as `freshet fit` does it."""
    events, split = world.dataset.events, world.split
    past = events[: len(split.fold.sequences.item)]
    some = np.isin(past.user, np.random.default_rng(0).permutation(np.unique(past.user))[:USERS])
    past = past[some]
    order = np.argsort(past.user, kind="stable")
    ends = np.cumsum(np.bincount(past.user, minlength=len(world.dataset.users)))[:-1]
    histories = [History(rows.astype(np.intp), times) for rows, times in zip(
        np.split(past.item[order], ends), np.split(past.time[order], ends), strict=True) if len(rows)]
    first = 3  # the least history of which a text was written
    drift = calibrate_drift(
        histories, vectors, settings.state, prior=PRIOR, slack=SLACK, false_alarm_every=FALSE_ALARM_EVERY, first=first,
        cooldown=settings.refresh.cooldown, seed=settings.fit.seed)
    found = Calibration(
        min_history=first, ttl_s=1e12, drift_mean=drift.mean, drift_sd=drift.sd, drift_prior=PRIOR, drift_slack=SLACK,
        drift_threshold=drift.threshold, drift_false_alarm_every=drift.false_alarm_every,
        margin_bound=choose_margin_bound(margins_by_user(scored))[0], epsilon=epsilon)
    played = [Event(world.dataset.users[past.user[row]], world.dataset.items[past.item[row]], float(past.time[row]),
                    "event", f"{row}", row, float(past.time[row])) for row in range(len(past))]

    def planner_with(ttl_s: float) -> Planner:
        return Planner(vectors, found.model_copy(update={"ttl_s": ttl_s}), settings)

    return found.model_copy(update={"ttl_s": choose_ttl(played, planner_with, stale_share=STALE_SHARE)[0]})


def interest_vectors(world: World) -> ItemVectors:
    """Return the item vectors that interests are averaged from: those of the transformer, centred, as in a version."""
    vectors = world.behaviour.late.backbone.item_side()[0].detach()
    unit = nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    return ItemVectors(world.dataset.items, unit.numpy())


def margins_of(world: World, course: Course, use: Use, say: Callable[[str], None] = lambda _: None
               ) -> dict[tuple[int, int], float]:
    """Return log p with text − log p by behaviour, nats, of each event and each of its user's texts before it.

    Keys are the row of the event and the row of the text's moment. An item that the user has had counts 0.
    """
    texts: dict[int, tuple[str, int, int]] = {}
    kinds = ("first", "later")
    for which, kind in enumerate(kinds):
        moments = world.moments[kind]
        texts |= {row: (moments.text[at], which, at) for at, row in enumerate(moments.row.tolist())}
    own: dict[int, list[int]] = {}
    for row in sorted(course.recorded):
        own.setdefault(int(world.split.test.user(np.array([row]))[0]), []).append(row)
    events = zip(course.rows.tolist(), course.user.tolist(), strict=True)
    pairs = [(at, row, text) for at, (row, user) in enumerate(events) for text in own[user] if text <= row]
    prepared = world.behaviour.prepare(course.rows, early=False)
    out: dict[tuple[int, int], float] = {}
    for begin in range(0, len(pairs), PART):
        part = pairs[begin : begin + PART]
        rows = np.array([row for _, row, _ in part])
        base = world.behaviour.logits(prepared[np.array([at for at, _, _ in part])])
        chosen = [texts[text] for _, _, text in part]
        encoded = [world.encoded[kinds[which]] for _, which, _ in chosen]
        stacked = None if any(found is None for found in encoded) else np.stack(
            [found[at] for found, (_, _, at) in zip(encoded, chosen, strict=True) if found is not None])
        fused = use(world.matched(
            base, [text for text, _, _ in chosen], stacked, rows, history=use.choice.idea.history))
        each, item = torch.arange(len(part)), torch.from_numpy(world.split.test.item[rows])
        values = (fused.log_softmax(-1) - base.log_softmax(-1))[each, item].nan_to_num(0.0, 0.0, 0.0)
        out |= {(row, text): value for (_, row, text), value in zip(part, values.tolist(), strict=True)}
        say(f"margins: {min(begin + PART, len(pairs)):,} of {len(pairs):,}")
    return out
