"""Computes an online experiment's result from messages: one reward per user from recommendations and events. Pure.

A user enters with the first recommendation that names the experiment and counts for `window_s` seconds of event time.
The reward is the mean score of the events in that window, each scored against the user's last recommendation before it.
A user without events has reward 0, so no user drops out because of what they were served. The clock is the largest
event time so far. So windows close in the order in which they opened, and at any moment the counted users are the first
n who entered; `models/measuring/uplift.py` explains why that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from models.measuring import uplift as statistics
from schemas.errors import FreshetError
from schemas.experiment import arm
from schemas.messages import Recommendation
from schemas.reading.reader import ReadEvent
from schemas.settings import ExperimentSettings
from schemas.settings.meanings import Meanings
from workers.measurement.prequential import TOP, ndcg

Reward = Literal["ndcg", "hit"]
REWARDS: dict[Reward, Callable[[Sequence[str], str], float]] = {
    "ndcg": ndcg, "hit": lambda items, item: float(item in items[:TOP])}
NAMES: dict[Reward, str] = {"ndcg": "NDCG@10", "hit": "Recall@10"}
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """The result of a user whose window has closed. `reward` is the mean over `events`, 0 without events."""

    control: bool
    entered_at: float
    events: int
    reward: float


@dataclass(slots=True)
class _Entry:
    control: bool
    entered_at: float
    events: set[str] = field(default_factory=set)
    total: float = 0.0


class RunningExperiment:
    """The users of one experiment, in order of entry.

    Args:
        settings: name and control share.
        window_s: seconds of event time for which a user counts.
        reward: score of an event.
    """

    def __init__(self, settings: ExperimentSettings, window_s: float = DAY_S, reward: Reward = "ndcg") -> None:
        self.settings = settings
        self.window_s = window_s
        self.reward: Reward = reward
        self.closed: list[ExperimentResult] = []
        self._open: dict[str, _Entry] = {}
        self._done: set[str] = set()
        self._offers: dict[str, tuple[int, list[str]]] = {}
        self._clock = -float("inf")

    def add_recommendation(self, message: Recommendation) -> None:
        """Record a recommendation. It becomes the user's offer unless it includes fewer events than the current offer.

        A list of what is popular is none: a user enters with the first list of their own.

        Raises:
            FreshetError: it was made with another control share than `settings` has.
        """
        user = message.user_id
        if message.source == "popular":  # the same in both arms, and of a user without events: it has no event time
            return
        self._advance(message.event_time)
        if message.experiment != self.settings.name:
            self._offers.pop(user, None)
            return
        mine = arm(user, self.settings.name, self.settings.control)
        if message.arm != mine:
            raise FreshetError(
                f"experiment {self.settings.name!r} served user {user} as {message.arm}, but with a control share of "
                f"{self.settings.control} the user's arm is {mine}. Set FRESHET_EXPERIMENT_CONTROL to the value that "
                "the stack runs with. If the share changed during the experiment, start a new one with another name")
        if user not in self._open and user not in self._done:
            self._open[user] = _Entry(mine == "control", self._clock)
        if user in self._open and message.count >= self._offers.get(user, (0, []))[0]:
            self._offers[user] = (message.count, [item.item_id for item in message.items[:TOP]])

    def add_event(self, user: str, item: str, event_id: str, event_time: float) -> None:
        """Score an event against the user's last recommendation. An event that is sent twice counts once."""
        self._advance(event_time)
        entry, offer = self._open.get(user), self._offers.get(user)
        if entry is not None and offer is not None and event_id not in entry.events:
            entry.events.add(event_id)
            entry.total += REWARDS[self.reward](offer[1], item)

    def _advance(self, event_time: float) -> None:
        self._clock = max(self._clock, event_time)
        while self._open:
            user, entry = next(iter(self._open.items()))
            if self._clock < entry.entered_at + self.window_s:
                return
            del self._open[user]
            self._done.add(user)
            self._offers.pop(user, None)
            n = len(entry.events)
            self.closed.append(ExperimentResult(entry.control, entry.entered_at, n, entry.total / n if n else 0.0))

    def figures(self, alpha: float = 0.05, effect: float | None = None, points: int = 40) -> dict[str, Any]:
        """Return the result so far, as in `freshet experiment --json`.

        Args:
            alpha: error probability of the whole confidence sequence.
            effect: uplift to forecast for; None = a tenth of the mean reward of all users.
            points: number of points in the path over time.
        """
        rewards = np.array([user.reward for user in self.closed])
        held = np.array([user.control for user in self.closed], dtype=bool)
        events = np.array([user.events for user in self.closed], dtype=np.int64)
        share, n = self.settings.control, len(rewards)
        at = np.unique(np.linspace(min(n, 1), n, points).astype(np.int64))
        path = statistics.confidence(rewards, held, share, alpha=alpha, at=at)
        now = path[-1]
        effect = (0.1 * float(rewards.mean()) if n else 0.0) if effect is None else effect
        needed = statistics.users_needed(
            statistics.pseudo_outcomes(rewards, held, share), share, effect, alpha) if effect else float("inf")
        days = (self.closed[-1].entered_at - self.closed[0].entered_at) / DAY_S if n > 1 else 0.0
        a_day = n / days if days > 0 else None
        return {
            "name": self.settings.name, "control_share": share, "reward": NAMES[self.reward],
            "window_s": self.window_s, "alpha": alpha, "users": n, "open_users": len(self._open),
            "arms": {"treatment": _arm(rewards[~held], events[~held]), "control": _arm(rewards[held], events[held])},
            "uplift": now.uplift, "interval": [now.low, now.high],
            "conclusion": conclusion(now), "users_per_day": a_day,
            "forecast": {
                "effect": effect, "users_needed": needed if needed < float("inf") else None,
                "days_left": max(0.0, needed - n) / a_day if a_day and needed < float("inf") else None},
            "path": [asdict(one) | {"entered_at": self.closed[one.users - 1].entered_at} for one in path if one.users],
        }


def _arm(rewards: Any, events: Any) -> dict[str, Any]:
    n = len(rewards)
    return {"users": n, "users_with_events": int((events > 0).sum()), "events": int(events.sum()),
            "reward": float(rewards.mean()) if n else None}


def conclusion(now: statistics.Uplift) -> str:
    """Return one sentence that interprets the interval."""
    if now.low > 0:
        return "Knowledge helps: the interval is above zero."
    if now.high < 0:
        return "Knowledge hurts: the interval is below zero."
    return "No significant difference yet: the interval contains zero."


def fold(
    trial: RunningExperiment, records: Iterable[tuple[float, ReadEvent | Recommendation]],
    meanings: Meanings | None = None,
) -> None:
    """Add all records of the two topics in the order in which they happened, whatever order they are passed in.

    Events that are no evidence of interest are left out: a return is no success of a list.

    Args: trial: receives the records. records: events with the broker's timestamp of their record, and recommendations
        with any number. A recommendation counts as earlier than an event if it was both ranked and caused before the
        event's timestamp. So the recommendation that the event itself caused never counts, even if the clocks of two
        machines differ. meanings: what events mean; None = what their types' names say.
    """
    meanings = Meanings() if meanings is None else meanings

    def when(record: tuple[float, ReadEvent | Recommendation]) -> tuple[float, bool]:
        at, message = record
        if isinstance(message, Recommendation):
            return max(message.ranked_at, message.caused_at), True
        return at, False

    for _, message in sorted(records, key=when):
        if isinstance(message, Recommendation):
            trial.add_recommendation(message)
        elif meanings.evidence(message.event_type):
            trial.add_event(message.user_id, message.item_id, message.event_id, message.event_time)


def chosen(settings: ExperimentSettings, found: Collection[str]) -> ExperimentSettings:
    """Return the settings of the experiment to report: the configured one, or the only one in the messages.

    Args:
        settings: the configured experiment.
        found: names in the recommendations, without "".

    Raises:
        FreshetError: there is no experiment, or there are several and none is named.
    """
    if settings.control <= 0:
        raise FreshetError("FRESHET_EXPERIMENT_CONTROL is 0: without control users there is no comparison")
    if settings.name in found:
        return settings
    if not found:
        raise FreshetError(
            "the recommendations contain no experiment. Start one with FRESHET_EXPERIMENT_NAME=NAME and "
            "FRESHET_EXPERIMENT_CONTROL=0.1 (the share of users served without knowledge), then `freshet up`")
    names = ", ".join(sorted(found))
    if settings.name:
        raise FreshetError(f"no recommendation belongs to experiment {settings.name!r}; there are {names}")
    if len(found) > 1:
        raise FreshetError(f"there are several experiments: {names}. Name one: `freshet experiment NAME`")
    return replace(settings, name=next(iter(found)))
