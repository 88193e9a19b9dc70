"""A simulation of load peaks and slow workers: the real planner, and a knowledge worker modelled as a queue.

Users are interested in one of two themes. Knowledge helps with the dominant theme of its history (margin +0.3 nats per
event, noise 0.3) and harms with the other (−0.3). In a storm all users change their theme at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from schemas.calibration import Calibration
from schemas.messages import Judgement, KnowledgeRequest, Margin
from schemas.settings import RefreshSettings, Settings, StateSettings
from streams.calibration.rehearsal import answer
from streams.decisions.planner import Planner, States
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event

THEME_ITEMS, DIM = 40, 16
INTAKE = 128  # requests that the worker reads at once and sorts by priority
CALIBRATION = Calibration(
    min_history=5, ttl_s=1e9, drift_mean=0.1, drift_sd=0.1, drift_prior=20.0, drift_slack=0.5, drift_threshold=10.0,
    drift_false_alarm_every=500.0, margin_bound=1.0, epsilon=0.1)


@dataclass(frozen=True)
class Scenario:
    """The parameters of a simulation. Times and durations in seconds, rates per second."""

    name: str
    title: str
    users: int = 400
    events_per_s: float = 40.0
    duration: int = 900
    storm_at: int = 10**9
    speed: float = 2.0
    trouble: tuple[int, int] = (0, 0)  # from, to
    speed_in_trouble: float = 2.0
    arriving: bool = False  # users join one after the other over the whole duration; False = all from the start
    changes: float = 0.0  # probability per event that its user changes their theme
    policy: str = "freshet"
    every: int = 20
    calls_per_1000: float | None = None

    def speed_at(self, second: int) -> float:
        """Return the worker's speed, requests per second."""
        return self.speed_in_trouble if self.trouble[0] <= second < self.trouble[1] else self.speed


@dataclass
class Story:
    """The record of a simulation. Lists have one entry per second, except `requests`."""

    queue: list[int] = field(default_factory=list)  # number of users with a waiting request
    price: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)  # share of users without knowledge of their current theme
    margin: list[float] = field(default_factory=list)  # mean over the second's events, nats
    calls: int = 0
    events: int = 0
    requests: list[KnowledgeRequest] = field(default_factory=list)
    longest_wait: int = 0  # own events between the first due refresh and its request
    superseded: int = 0  # waiting requests replaced by a newer one of the same user


class Simulation:
    """One scenario, second by second.

    Args:
        priced: False = no market; every reason leads to a request at once.
    """

    def __init__(self, scenario: Scenario, *, priced: bool = True, seed: int = 0) -> None:
        self.scenario = scenario
        self.rng = np.random.default_rng(seed)
        themes = np.repeat(np.eye(2, DIM), THEME_ITEMS, axis=0)
        vectors = (themes + 0.1 * self.rng.normal(size=themes.shape)).astype(np.float32)
        self.planner = Planner(
            ItemVectors([f"i{n}" for n in range(2 * THEME_ITEMS)], vectors), CALIBRATION,
            Settings(state=StateSettings(history=20, seen=0, event_ids=32),
                     refresh=RefreshSettings(policy=scenario.policy, every=scenario.every,
                                             calls_per_1000=scenario.calls_per_1000)))
        if not priced:
            self.planner.market = None
        self.states: States = {}
        # Half of the users begin with the other theme, so that a theme by itself does not indicate drift.
        self.interest = np.arange(scenario.users) % 2
        self.theme: dict[str, int] = {}  # theme of each user's knowledge
        self.queue: dict[str, KnowledgeRequest] = {}
        self.credit = 0.0
        self.number = 0
        self.wanted: dict[str, int] = {}
        self.story = Story()

    def run(self, watch: Callable[[int, Simulation], None] = lambda second, simulation: None) -> Story:
        """Run the scenario; call `watch` at the end of every second."""
        for second in range(self.scenario.duration):
            self._second(second)
            watch(second, self)
        return self.story

    def _second(self, second: int) -> None:
        scenario, story = self.scenario, self.story
        if second == scenario.storm_at:
            self.interest = 1 - self.interest
        events = []
        active = 1 + second * (scenario.users - 1) // scenario.duration if scenario.arriving else scenario.users
        for user in self.rng.integers(active, size=self.rng.poisson(scenario.events_per_s)).tolist():
            if scenario.changes and self.rng.random() < scenario.changes:
                self.interest[user] = 1 - self.interest[user]
            item = self.interest[user] * THEME_ITEMS + int(self.rng.integers(THEME_ITEMS))
            events.append(Event(f"u{user}", f"i{item}", float(second), "view", f"e{self.number}", self.number,
                                float(second)))
            self.number += 1
        story.events += len(events)
        if events:
            plan = self.planner.events(self.states, events, float(second))
            self._enqueue(plan.knowledge)
            margins = self._judge(plan.ranking)
            self._enqueue(self.planner.judgements(self.states, margins, float(second)).knowledge)
            values = [margin.value for judgement in margins for margin in judgement.margins]
            # Events without knowledge have margin 0.
            story.margin.append(sum(values) / len(events))
        else:
            story.margin.append(0.0)
        self._work(second)
        self._track_waits()
        market = self.planner.market
        story.queue.append(len(self.queue))
        story.price.append(market.budget_price + market.queue_price if market is not None else 0.0)
        wrong = [self.theme.get(f"u{user}") != theme for user, theme in enumerate(self.interest.tolist())
                 if not scenario.arriving or f"u{user}" in self.states]
        story.wrong.append(float(np.mean(wrong)) if wrong else 0.0)

    def _judge(self, ranking: list) -> list[Judgement]:
        out = []
        for request in ranking:
            if request.knowledge_version and request.judged:
                margins = []
                for judged in request.judged:
                    fits = int(judged.item_id[1:]) // THEME_ITEMS == self.theme[request.user_id]
                    margins.append(Margin(
                        event_id=judged.event_id, item_id=judged.item_id, count=judged.count,
                        value=(0.3 if fits else -0.3) + float(self.rng.normal(scale=0.3)),
                        knowledge_version=request.knowledge_version))
                out.append(Judgement(user_id=request.user_id, margins=margins, model_version="",
                                     event_time=request.event_time, judged_at=request.event_time))
        return out

    def _enqueue(self, requests: list[KnowledgeRequest]) -> None:
        for request in requests:
            self.story.requests.append(request)
            self.story.superseded += self.queue.pop(request.user_id, None) is not None
            self.queue[request.user_id] = request
            since = self.wanted.pop(request.user_id, None)
            if since is not None:
                self.story.longest_wait = max(self.story.longest_wait, request.count - since)

    def _work(self, second: int) -> None:
        """Serve the queue: always the request with the highest priority among the oldest `INTAKE`."""
        self.credit = min(self.credit + self.scenario.speed_at(second), self.scenario.speed + 1.0)
        updates = []
        while self.credit >= 1.0 and self.queue:
            users = list(self.queue)[:INTAKE]
            user = max(users, key=lambda name: self.queue[name].priority)
            request = self.queue.pop(user)
            self.credit -= 1.0
            self.theme[user] = int(np.mean([int(item[1:]) // THEME_ITEMS for item in request.history[-8:]]) >= 0.5)
            updates.append((answer(request), float(second)))
        self.story.calls += len(updates)
        self.planner.updates(self.states, updates, float(second))

    def _track_waits(self) -> None:
        """Record since when users have been due for a refresh without a request."""
        for user, state in self.states.items():
            if state.pending is None and state.wanted_count:
                self.wanted.setdefault(user, state.wanted_count)
