"""The loop of a replay: passes events through planner, ranking and knowledge processor, and feeds the answers back.

The processors are those of the live roles; only the transport of messages differs. Event time is the only clock, and
every answer arrives before the user's next event. So a replay measures what decisions and models are worth, not what
latency costs (the demo measures that).

Order of steps for one event: nightly knowledge if a period has ended; predict; fold; rank and judge with the current
knowledge; handle the judgement; generate new knowledge and rank with it. The live stack does the same, except that its
judgement and its new knowledge race.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from schemas.messages import Judgement, KnowledgeRequest, KnowledgeUpdate, RankingRequest, Recommendation
from schemas.settings import RankingSettings
from streams.calibration.rehearsal import answer
from streams.decisions.admission import mark_requested
from streams.decisions.outgoing import knowledge_request
from streams.decisions.planner import Plan, Planner, States
from streams.profile.fold import Event
from workers.kafka.outbox import Rejected
from workers.measurement.prequential import TOP
from workers.replay.record import ReplayRecord
from workers.replay.store import MemoryStore
from workers.replay.timeline import waves
from workers.roles.knowledge.worker import Generator, KnowledgeProcessor
from workers.roles.ranking.ranker import Ranker
from workers.roles.ranking.worker import RankingProcessor
from workers.store.cache import CachedReader

WAVE = 256  # users per wave; the batch size of the ranking role
# Number of consecutive events from which waves are cut if refreshes have a price. With 256, no event moves by more than
# a quarter of the 1,000 events that a budget refers to. A wave then has 25 users on average on Beauty. On
# MovieLens-100K, whose users rate in bursts, it has 2, so a priced replay takes as long as playing one event at a time.
PRICED_BLOCK = 256
PASSES = 8  # forward passes per call, as in the knowledge role
BACKFILL = 4096  # events folded at once
# Policies that react to judgements, so their requests cannot be predicted without ranking.
JUDGING = frozenset({"judge", "freshet"})

Step = Callable[..., None]


@dataclass
class Clock:
    """The clock of a replay: the newest event time so far, seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the current time."""
        return self.now


@dataclass
class Replay:
    """A replay in progress.

    Args:
        states: users' states after the past was folded; changed in place.
        wave: maximum number of users per wave; 1 = one event at a time.
        block: see `timeline.waves`.
        stock: past users have knowledge when they return; see `stocked`.
        listen: called with every plan and the judgements that led to it; for tests.
    """

    planner: Planner
    ranker: Ranker
    generator: Generator
    states: States
    llm_batch: int = 16
    ranking: RankingSettings = field(default_factory=RankingSettings)
    wave: int = WAVE
    block: int | None = None
    stock: bool = False
    listen: Callable[[Plan, Sequence[Judgement]], None] | None = None
    record: ReplayRecord = field(default_factory=ReplayRecord)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.ranker.dim)
        # Cache every user: with the store in the same process, a smaller cache would only cause more reads.
        self._ranking = RankingProcessor(
            self.ranker, CachedReader(self.store, capacity=2**31), replace(self.ranking, top=TOP), self.clock)
        self._knowledge = KnowledgeProcessor(self.generator, self.store, self.llm_batch, self.clock)

    def play(self, events: Sequence[Event], step: Step = lambda *_: None) -> None:
        """Play events in time order. Each is predicted before it is added to the user's state."""
        done = 0
        for wave in waves(events, self.wave, self.block):
            self._wave([events[place] for place in wave], wave)
            done += len(wave)
            step(done, len(events))

    def _wave(self, events: Sequence[Event], places: Sequence[int]) -> None:
        self.clock.now = max(self.clock.now, *(event.event_time for event in events))
        now = self.clock.now
        self._recommend_first(events)
        self._settle(self.planner.nightly_requests(self.states, events, now))
        for event, place in zip(events, places, strict=True):
            if self.planner.meanings.evidence(event.event_type):  # a return is no success of the list
                self.record.predicted(event, place, self._count(event.user_id) + 1)
        self._settle(self.planner.events(self.states, events, now))

    def _recommend_first(self, events: Sequence[Event]) -> None:
        """Recommend to past users without a recommendation, so that under every policy their next event is judged."""
        now = self.clock.now
        new = [event.user_id for event in events if event.user_id not in self.record.offers]
        if self.stock:
            requests = stocked(self.planner, self.states, new, now)
            self.planner.updates(self.states, self._generate(requests, stock=True), now)
        self._rank([
            self.planner.ranking(user, state, "event", state.caused_at, now)
            for user in new if (state := self.states.get(user)) is not None and state.items])

    def _settle(self, plan: Plan) -> None:
        """Answer all requests of a plan and the requests that follow from the answers, until none is left.

        Rankings come before generations, because an event is judged by the knowledge that existed when it happened.
        """
        self._notify(plan, [])
        ranking, knowledge = list(plan.ranking), list(plan.knowledge)
        while ranking or knowledge:
            if ranking:
                judgements = self._rank(ranking)
                plan = self.planner.judgements(self.states, judgements, self.clock.now)
                self._notify(plan, judgements)
                ranking = list(plan.ranking)
                knowledge += plan.knowledge
            else:
                plan = self.planner.updates(self.states, self._generate(knowledge), self.clock.now)
                self._notify(plan, [])
                ranking, knowledge = list(plan.ranking), list(plan.knowledge)

    def _rank(self, requests: Sequence[RankingRequest]) -> list[Judgement]:
        judgements: list[Judgement] = []
        for start in range(0, len(requests), self.ranking.batch):
            (outputs,) = self._ranking(requests[start:start + self.ranking.batch])
            for output in outputs:
                if isinstance(output.message, Recommendation):
                    self.record.recommended(output.message)
                elif isinstance(output.message, Judgement):
                    judgements.append(output.message)
        return judgements

    def _generate(
        self, requests: Sequence[KnowledgeRequest], *, stock: bool = False,
    ) -> list[tuple[KnowledgeUpdate, float]]:
        updates = []
        before = self._knowledge.counters["generated"]
        for start in range(0, len(requests), PASSES * self.llm_batch):
            for part in self._knowledge(requests[start:start + PASSES * self.llm_batch]):
                for output in part:
                    if isinstance(output, Rejected):
                        self.record.rejected += 1
                    elif isinstance(output.message, KnowledgeUpdate):
                        if not stock:
                            self.record.refreshed(output.message)
                        updates.append((output.message, self.clock.now))
        made = self._knowledge.counters["generated"] - before
        if stock:
            self.record.stocked += made
        else:
            self.record.calls += made
        return updates

    def _count(self, user: str) -> int:
        state = self.states.get(user)
        return state.count if state is not None else 0

    def _notify(self, plan: Plan, judgements: Sequence[Judgement]) -> None:
        if self.listen is not None:
            self.listen(plan, judgements)


def fold_past(planner: Planner, past: Sequence[Event]) -> States:
    """Return the states after folding the past, as `backfill` leaves them in the live stack, whatever the policy."""
    states: States = {}
    for start in range(0, len(past), BACKFILL):
        planner.events(states, past[start:start + BACKFILL], past[start].event_time)
    return states


def stocked(planner: Planner, states: States, users: Sequence[str], now: float) -> list[KnowledgeRequest]:
    """Request the knowledge that an offline run at the split would have generated for these past users.

    It is requested when a user returns, from the state at the split, so the result is the same and nothing is generated
    for users who never return. Under the policy `never` there are no requests.
    """
    requests: list[KnowledgeRequest] = []
    for user in users:
        state = states.get(user)
        if (state is not None and planner.policy.name != "never" and state.knowledge_version == 0
                and state.pending is None and state.count >= planner.policy.min_history):
            mark_requested(state, "cold_start", now, 0.0)
            assert state.pending is not None  # noqa: S101 - for the type checker
            requests.append(knowledge_request(user, state, state.pending))
    return requests


def rehearse(
    planner: Planner, states: States, events: Sequence[Event], *, stock: bool = False,
) -> tuple[list[KnowledgeRequest], list[KnowledgeRequest]]:
    """Return the planner's requests if each is answered at once and nothing is judged.

    These are the requests of a replay under every policy that does not react to judgements, without running the models.

    Args:
        states: changed in place.

    Returns:
        The requests of the policy, and with `stock` those of `stocked`.
    """
    asked: list[KnowledgeRequest] = []
    before: list[KnowledgeRequest] = []
    known: set[str] = set()
    version = planner.policy.model_version
    now = 0.0
    for wave in waves(events, WAVE):
        part = [events[place] for place in wave]
        now = max(now, *(event.event_time for event in part))
        if stock:
            new = [event.user_id for event in part if event.user_id not in known]
            known.update(new)
            requests = stocked(planner, states, new, now)
            before.extend(requests)
            planner.updates(states, [(answer(request, version), now) for request in requests], now)
        for plan in (planner.nightly_requests(states, part, now), planner.events(states, part, now)):
            newest = {request.user_id: request for request in plan.knowledge}
            asked.extend(newest.values())
            planner.updates(states, [(answer(request, version), now) for request in newest.values()], now)
    return asked, before
