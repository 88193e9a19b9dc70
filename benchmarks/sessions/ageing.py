"""Knowledge that ages: which policy asks for a new text in time, which trigger foresees that the old one is useless.

Users' events are played in order of time through the product's planner (`streams.decisions`). A text that is asked for
during a session is there before the next one begins, if one was recorded for that moment; until then the request stays
open. Between two texts the older one is served and judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.sessions.world import World
from models.data.dataset import FloatArray, IntArray
from models.measuring.intervals import resampled
from schemas.calibration import Calibration
from schemas.messages import Judgement, Margin
from schemas.settings import RefreshSettings, Settings
from streams.calibration.rehearsal import answer
from streams.decisions.admission import mark_requested
from streams.decisions.gain import PRIOR, refresh_features
from streams.decisions.outgoing import knowledge_request
from streams.decisions.planner import Planner, States
from streams.detection.drift import distance
from streams.detection.trust import mixture
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from streams.profile.state import UserState, dumps, loads

BACKFILL = 4096  # events folded at once
# (row of the event, row of the text's moment) → log p_fused − log p_ref, nats
MarginOf = Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Course:
    """The users with later moments, from their first moment to their last.

    Args:
        rows: (e,) rows of their events, in order of time; those of one time in order of the file.
        user: (e,) user rows.
        recorded: rows of the moments at which a text was recorded, `first` and `later`.
        first: user → row of the first moment.
    """

    rows: IntArray
    user: IntArray
    recorded: frozenset[int]
    first: dict[int, int]


@dataclass(frozen=True, slots=True)
class Glance:
    """What the triggers say of the old text just before a session begins.

    Args:
        text: row of the moment whose text is in use; −1 = none.
        trust: share of the radius that the judge leaves.
        signals: by name, larger = the text is more likely useless.
    """

    text: int
    trust: float
    signals: dict[str, float]


@dataclass
class Played:
    """A finished play: calls after the first text of each user, and a glance per later moment, by its row."""

    calls: int = 0
    glances: dict[int, Glance] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


def course_of(world: World) -> Course:
    """Return the course of the users who have later moments."""
    first, later = world.moments["first"], world.moments["later"]
    begin = dict(zip(first.user.tolist(), first.row.tolist(), strict=True))
    end: dict[int, int] = {}
    for user, stop in zip(later.user.tolist(), later.stop.tolist(), strict=True):
        end[user] = max(end.get(user, 0), stop)
    rows = np.concatenate([np.arange(begin[user], stop) for user, stop in end.items()])
    rows = rows[np.lexsort((rows, world.times[rows]))]
    recorded = {begin[user] for user in end} | set(later.row.tolist())
    user = world.split.test.user(rows)
    return Course(rows, user, frozenset(recorded), {user: begin[user] for user in end})


class PolicyStage:
    """The planner's world, ready to be played under any policy.

    Args:
        vectors: of items, from which interests are averaged.
        calibration: thresholds.
        margin_of: what a text was worth at an event.
    """

    def __init__(
        self, world: World, course: Course, vectors: ItemVectors, calibration: Calibration, settings: Settings,
        margin_of: MarginOf,
    ) -> None:
        self._world, self._times, self.course, self._margin_of = world, world.times, course, margin_of
        self._vectors, self._calibration, self._settings = vectors, calibration, settings
        self._past = self._fold()

    def planner(self, refresh: RefreshSettings) -> Planner:
        """Return a planner like the streams role's, with these refresh settings."""
        return Planner(self._vectors, self._calibration, replace(self._settings, refresh=refresh))

    def play(self, refresh: RefreshSettings) -> Played:
        """Play the course under a policy. Every policy but `never` starts with the text of the first moment."""
        planner, played = self.planner(refresh), Played()
        states: States = {name: loads(state) for name, state in self._past.items()}
        text: dict[str, int] = {}
        for row, user in zip(self.course.rows.tolist(), self.course.user.tolist(), strict=True):
            event = self._event(row, user)
            name, now = event.user_id, event.event_time
            state = states[name]
            if row in self.course.recorded:
                if row == self.course.first[user]:
                    if refresh.policy != "never":
                        mark_requested(state, "cold_start", now, 0.0)
                elif state.pending is not None:
                    played.calls += 1
                    played.reasons[state.pending.reason] = played.reasons.get(state.pending.reason, 0) + 1
                if state.pending is not None:
                    planner.updates(states, [(answer(knowledge_request(name, state, state.pending)), now)], now)
                    text[name] = row
                if row != self.course.first[user]:
                    used = text.get(name, -1)
                    served = 0.0 if state.contradicted_at or used < 0 else state.trust
                    played.glances[row] = Glance(used, served, self._signals(planner, state, row, used))
            planner.events(states, [event], now)
            if name in text:
                margin = Margin(
                    event_id=event.event_id, item_id=event.item_id, count=state.count,
                    value=self._margin_of(row, text[name]), knowledge_version=state.knowledge_version)
                planner.judgements(states, [Judgement(
                    user_id=name, margins=[margin], model_version="", event_time=now, judged_at=now)], now)
        return played

    def _signals(self, planner: Planner, state: UserState, row: int, text: int) -> dict[str, float]:
        if text < 0:
            return {}
        wealth = np.array(state.log_wealth) if state.log_wealth else np.zeros(1)
        features = refresh_features([state], [None], planner.policy, planner.alpha)
        short, anchor = (np.frombuffer(vector, "<f4")[None] for vector in (state.short, state.anchor))
        return {
            "drift: distance": float(distance(short, anchor)[0]), "drift: CUSUM": state.cusum,
            "judge: wealth against it": float(mixture(wealth)),
            "age: events": float(row - text), "age: days": (state.event_time - state.knowledge_event_time) / 86_400,
            "freshet: expected gain": float(features[0] @ PRIOR),
        }

    def _event(self, row: int, user: int, *, backfill: bool = False) -> Event:
        world, at = self._world, float(self._times[row])
        return Event(world.dataset.users[user], world.dataset.items[world.split.test.item[row]], at, "event", f"{row}",
                     row, at, backfill)

    def _fold(self) -> dict[str, bytes]:
        """Return users' states just before their first moment, as a backfill leaves them."""
        planner, states = self.planner(RefreshSettings(policy="never")), {}
        low = self._world.split.test.offsets
        rows = np.concatenate([np.arange(low[user], row) for user, row in self.course.first.items()])
        users = np.repeat(list(self.course.first), [row - low[user] for user, row in self.course.first.items()])
        for begin in range(0, len(rows), BACKFILL):
            part = slice(begin, begin + BACKFILL)
            events = [self._event(row, user, backfill=True)
                      for row, user in zip(rows[part].tolist(), users[part].tolist(), strict=True)]
            planner.events(states, events, events[-1].event_time)
        return {name: dumps(state) for name, state in states.items()}


def foresight(signal: FloatArray, useless: FloatArray, user: IntArray, draws: int = 300) -> dict[str, float]:
    """Return how well a signal orders moments by how useless the old text turned out, with 95% intervals over users.

    Args:
        signal: (m,) larger = warns more.
        useless: (m,) what the old text lost there, nats: −(log p_fused − log p_ref).

    Returns:
        "rank" (Spearman's correlation) and "auc" (probability that a moment at which the text harmed has the larger
        signal than one at which it helped), each with "_low" and "_high".
    """
    place, drawn = resampled(user, draws)
    found = {"rank": _spearman(signal, useless), "auc": _auc(signal, useless > 0)}
    rows = [np.flatnonzero(place == at) for at in range(int(place.max()) + 1)] if len(place) else []
    samples: dict[str, list[float]] = {"rank": [], "auc": []}
    for counts in drawn:
        some = np.concatenate([np.tile(rows[at], counts[at]) for at in np.flatnonzero(counts)])
        samples["rank"].append(_spearman(signal[some], useless[some]))
        samples["auc"].append(_auc(signal[some], useless[some] > 0))
    for name, values in samples.items():
        found[f"{name}_low"], found[f"{name}_high"] = np.quantile(values, [0.025, 0.975]).tolist()
    return found


def _ranked(values: FloatArray) -> FloatArray:
    """Return ranks, ties sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]


def _spearman(one: FloatArray, other: FloatArray) -> float:
    first, second = _ranked(one), _ranked(other)
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _auc(signal: FloatArray, positive: Any) -> float:
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return 0.5
    return float((_ranked(signal)[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def policies(budgets: Sequence[float] = (50, 150)) -> list[tuple[str, RefreshSettings]]:
    """Return the policies to play, each by name and setting.

    No cooldown: a text can only come between two sessions, so it spaces requests out already.
    """
    def set_(**changes: Any) -> RefreshSettings:
        return RefreshSettings(cooldown=0, **changes)

    out = [("never", set_(policy="never")), ("once", set_(policy="once")), ("every session", set_(policy="always"))]
    out += [(f"every {n} events", set_(policy="every-n", every=n)) for n in (2, 3, 5)]
    out += [(f"drift, h = {h:g}", set_(policy="drift", drift_threshold=h)) for h in (0.5, 1.0, 2.0)]
    out += [(f"judge, level {alpha:g}", set_(policy="judge", alpha=alpha)) for alpha in (0.8, 0.5)]
    out += [("freshet", set_(policy="freshet"))]
    return out + [(f"freshet, {calls:g} calls per 1,000", set_(policy="freshet", calls_per_1000=calls))
                  for calls in budgets]
