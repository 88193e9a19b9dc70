"""The decision logic of streams as pure functions: states and messages in, changed states and messages out.

It uses no clock, broker or file, so the Faust app and an offline replay call the same three methods. Each method takes
the current states of the users in a batch (missing users are new), changes them in place and returns the messages to
send. A redelivered message changes no state but repeats its requests, because the process may have crashed before
sending them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from schemas.calibration import Calibration
from schemas.messages import (
    AlignmentSample,
    JudgedEvent,
    Judgement,
    KnowledgeRequest,
    KnowledgeUpdate,
    Margin,
    RankingReason,
    RankingRequest,
    RefreshReason,
    UserSeen,
)
from schemas.settings import Settings
from streams.decisions.admission import mark_requested, request_by_price, request_by_reason
from streams.decisions.gain import begin_trial, note_margins
from streams.decisions.outgoing import alignment_samples, judged_events, knowledge_request, ranking_request
from streams.decisions.policies import by_period, period_ended
from streams.decisions.price import Limits, Market, advance, record_answer
from streams.decisions.refresh import Arrival, Policy, outdated, priority
from streams.detection.drift import Detector
from streams.detection.trust import initial_trust, judge
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event, Touched, fold
from streams.profile.interests import rebuild
from streams.profile.state import UserState

States = dict[str, UserState]


@dataclass(slots=True)
class Plan:
    """The outcome of one batch: users whose states must be stored (`changed`), and messages to send."""

    changed: set[str] = field(default_factory=set)
    ranking: list[RankingRequest] = field(default_factory=list)
    knowledge: list[KnowledgeRequest] = field(default_factory=list)
    alignment: list[AlignmentSample] = field(default_factory=list)
    unknown_users: int = 0  # ignored judgements and updates of users without a state
    contradictions: int = 0  # users whose knowledge is contradicted from now on
    # Of a batch of events; `streams.profile.fold` says what they are.
    events: int = 0  # applied to a state
    duplicates: int = 0
    late: int = 0
    too_late: int = 0
    unknown_items: int = 0
    unknown_types: int = 0
    apart: int = 0


class Planner:
    """Decides about batches, given the model's thresholds and the market that prices refreshes.

    `market` is the only memory besides users' states. It exists with the `freshet` policy and is None with the others.
    With `market` set to None, every reason triggers a request at once, however long the queue is.

    Args:
        vectors: item vectors of the fitted model.
        calibration: thresholds of the fitted model.
        settings: bounds, and overrides of the thresholds.
        model_version: version of the fitted model; knowledge of another version is stale. "" = do not compare.
    """

    def __init__(
        self, vectors: ItemVectors, calibration: Calibration, settings: Settings, model_version: str = "",
    ) -> None:
        self.settings = settings
        self.meanings = settings.events.meaning
        self.repeats = settings.ranking.repeats
        calls = settings.refresh.calls_per_1000
        self.limits = Limits(None if calls is None else calls / 1000.0)
        self._use_model(vectors, calibration, model_version)
        self.market: Market | None = Market() if self.policy.name == "freshet" else None

    def _use_model(self, vectors: ItemVectors, calibration: Calibration, model_version: str) -> None:
        self.vectors = vectors
        self.detector = Detector.of(calibration, self.settings.refresh)
        self.policy = Policy.of(calibration, self.settings.refresh, model_version)
        self.margin_bound = calibration.margin_bound
        self.alpha = self.settings.refresh.alpha

    def follow(self, vectors: ItemVectors, calibration: Calibration, model_version: str,
               withdrawn: Collection[str] = ()) -> bool:
        """Switch to another fitted model, between two batches; return whether the model changed.

        From then on, as soon as the knowledge workers have this model too, knowledge of any other is stale, and each
        user's interests move to the new model's space with their next event (`interests.rebuild`). Prices and learned
        gains stay, because their unit is the judge's bound.
        """
        if self.policy.model_version in ("", model_version):
            return False
        before = self.policy.name
        self._use_model(vectors, calibration, model_version)
        self.withdraw(withdrawn)
        if self.policy.name != before:  # one of the two models makes no knowledge, so it needs no market
            self.market = Market() if self.policy.name == "freshet" else None
        return True

    def withdraw(self, versions: Collection[str]) -> None:
        """Treat the knowledge of these model versions as stale, and of no others but those of other fitted models.

        They are adapters of the model in use that were rolled back. (A withdrawn fitted model is not in use.)
        """
        if self.policy.withdrawn != frozenset(versions):
            self.policy = replace(self.policy, withdrawn=frozenset(versions), arrival=Arrival())

    def events(self, states: States, events: Sequence[Event], now: float, ticks: float | None = None) -> Plan:
        """Fold behaviour events; request rankings and, where a refresh is due, knowledge.

        Args:
            events: in order of arrival.
            now: wall clock, seconds.
            ticks: monotonic seconds for prices, which a jump of the wall clock must not move; None = `now`.
        """
        ticks = now if ticks is None else ticks
        groups: dict[str, list[Event]] = {}
        for event in events:
            group = groups.get(event.user_id)
            if group is None:
                groups[event.user_id] = [event]
            else:
                group.append(event)
        model = self.policy.model_version
        for user in groups:
            if user not in states:
                states[user] = UserState(interest_model=model)
            elif states[user].interest_model != model and model:
                rebuild(states[user], self.vectors, self.settings.state, model)
        plan = Plan(changed=set(groups))
        concerned: dict[str, bool] = {}
        fresh = 0
        for user, note in self._fold(plan, states, groups, now).items():
            plan.duplicates += note.duplicates
            plan.late += note.late
            plan.too_late += note.too_late
            plan.unknown_items += note.unknown_items
            plan.unknown_types += note.unknown_types
            plan.apart += note.apart
            if note.live:
                state = states[user]
                plan.ranking.append(self.ranking(
                    user, state, "event", note.caused_at, now, judged_events(state, note), note.weights))
                evidence = len(groups[user]) - len(note.replayed) - note.apart
                if evidence:
                    concerned[user] = bool(note.replayed)
                    fresh += evidence
                elif note.replayed and state.pending is not None:
                    plan.knowledge.append(self._request(user, state))
        plan.events = len(events) - plan.duplicates - plan.too_late
        self._advance_market(fresh, ticks)
        self._request_refreshes(plan, states, concerned, now, ticks)
        return plan

    def nightly_requests(self, states: States, events: Sequence[Event], now: float) -> Plan:
        """Request the knowledge that a nightly run would have made by now; empty with other policies than `nightly`.

        `events` does this itself. A replay that needs the answers before the events are judged calls this method first
        and passes the answers to `updates`; no request is made twice.

        Args:
            events: about to be folded; only the first event of each user counts.
        """
        plan = Plan()
        if self.policy.name == "nightly":
            for event in events:
                state = states.get(event.user_id)
                if state is not None and period_ended(state, event, self.policy.min_history, self.policy.period_s):
                    reason: RefreshReason = "stale" if state.knowledge_version else "cold_start"
                    mark_requested(state, reason, now, priority(state, reason, self.policy))
                    plan.knowledge.append(self._request(event.user_id, state))
                    plan.changed.add(event.user_id)
        return plan

    def _fold(self, plan: Plan, states: States, groups: dict[str, list[Event]], now: float) -> dict[str, Touched]:
        constants = (self.vectors, self.settings.state, self.detector, self.meanings, self.repeats.dated)
        if self.policy.name != "nightly":
            return fold(states, groups, *constants)
        notes: dict[str, Touched] = {}
        for part in by_period(states, groups, self.policy.period_s):
            plan.knowledge.extend(self.nightly_requests(states, [group[0] for group in part.values()], now).knowledge)
            for user, note in fold(states, part, *constants).items():
                notes[user] = notes[user].merged(note) if user in notes else note
        return notes

    def judgements(
        self, states: States, judgements: Sequence[Judgement], now: float, ticks: float | None = None,
    ) -> Plan:
        """Update the contradiction tests with the margins of users' events. `now`, `ticks`: see `events`."""
        plan = Plan()
        ticks = now if ticks is None else ticks
        self._advance_market(0, ticks)
        contradicted: dict[str, bool] = {}
        for judgement in judgements:
            state = states.get(judgement.user_id)
            if state is None:
                plan.unknown_users += 1
                continue
            plan.changed.add(judgement.user_id)
            if self._judge(plan, judgement, state, now) and "contradiction" in self.policy.reasons:
                contradicted[judgement.user_id] = True
        self._request_refreshes(plan, states, contradicted, now, ticks)
        return plan

    def updates(
        self, states: States, updates: Sequence[tuple[KnowledgeUpdate, float]], now: float,
        ticks: float | None = None,
    ) -> Plan:
        """Record which knowledge is in the store and request rankings with it.

        Args:
            updates: each with its record's broker timestamp, seconds.
            now, ticks: see `events`.
        """
        plan = Plan()
        self._advance_market(0, now if ticks is None else ticks)
        newest: dict[str, float] = {}
        for update, caused_at in updates:
            state = states.get(update.user_id)
            if state is None:
                plan.unknown_users += 1
                continue
            old = outdated(update.model_version, self.policy)
            if not old:
                self.policy.arrival.note(now)
            if update.version < state.knowledge_version:
                continue
            if update.version > state.knowledge_version:
                _accept(state, update, self.alpha)
                state.outdated_at = now if old else 0.0
                plan.changed.add(update.user_id)
                if self.market is not None and state.pending is None:
                    record_answer(self.market, update.user_id)
            newest[update.user_id] = caused_at
        for user, caused_at in newest.items():
            plan.ranking.append(self.ranking(user, states[user], "knowledge", caused_at, now))
        return plan

    def seen(
        self, states: States, seen: Sequence[tuple[UserSeen, float]], now: float, ticks: float | None = None,
    ) -> Plan:
        """Request rankings for users who are here, in each one's newest way; keep the labels that are to be kept.

        A user without a state gets none, unless there is something to keep.

        Args:
            seen: each with its record's broker timestamp, seconds.
            now, ticks: see `events`.
        """
        plan = Plan()
        self._advance_market(0, now if ticks is None else ticks)
        for message, _ in seen:
            if message.keep:
                state = states.setdefault(message.user_id, UserState(interest_model=self.policy.model_version))
                state.allow = state.allow if message.allow is None else list(message.allow)
                state.deny = state.deny if message.deny is None else list(message.deny)
                plan.changed.add(message.user_id)
        for user, (message, caused_at) in {message.user_id: (message, at) for message, at in seen}.items():
            state = states.get(user) or UserState()
            plan.ranking.append(self.ranking(user, state, "seen", caused_at, now, seen=message))
        return plan

    def _advance_market(self, events: int, ticks: float) -> None:
        if self.market is not None:
            advance(self.market, self.limits, events, ticks)

    def _request_refreshes(
        self, plan: Plan, states: States, users: dict[str, bool], now: float, ticks: float,
    ) -> None:
        """Request knowledge for those of `users` whose refresh is due.

        Args:
            users: user → whether the batch redelivered some of their events; if so, repeat their pending request.
        """
        names = list(users)
        user_states = [states[user] for user in names]
        if self.market is None:
            requested = request_by_reason(user_states, now, self.policy)
        else:
            requested = request_by_price(
                names, user_states, now, ticks, self.policy, self.market, self.limits, self.alpha)
        for user, state, new in zip(names, user_states, requested, strict=True):
            if new or (users[user] and state.pending is not None):
                plan.knowledge.append(self._request(user, state))

    def ranking(
        self, user: str, state: UserState, reason: RankingReason, caused_at: float, now: float,
        judged: Sequence[JudgedEvent] = (), weights: Mapping[str, float] | None = None, seen: UserSeen | None = None,
    ) -> RankingRequest:
        """Return a request for new recommendations, with what the settings say of repeats; see `ranking_request`."""
        return ranking_request(
            user, state, reason, caused_at, now, judged, self.repeats, self.meanings, weights or {}, seen)

    def _request(self, user: str, state: UserState) -> KnowledgeRequest:
        assert state.pending is not None  # noqa: S101 - for the type checker
        return knowledge_request(user, state, state.pending, as_asked=self.policy.name == "nightly")

    def _judge(self, plan: Plan, judgement: Judgement, state: UserState, now: float) -> bool:
        """Update one user's test; return whether the judgement contains the margin that contradicts the knowledge."""
        newest = max((margin.knowledge_version for margin in judgement.margins), default=0)
        known = max(state.knowledge_version, state.pending.version if state.pending else 0)
        if newest > known:
            _catch_up(state, newest, self.alpha)
            if self.market is not None:
                record_answer(self.market, judgement.user_id)
        fresh: list[Margin] = []
        done = max(state.judged_count, state.knowledge_count)
        for margin in judgement.margins:
            if 0 < margin.knowledge_version == state.knowledge_version and margin.count > done:
                fresh.append(margin)
                done = margin.count
        if fresh and not state.contradicted_at:
            values = [margin.value for margin in fresh]
            verdict = judge(state.log_wealth, state.help_wealth, state.standing, values, self.margin_bound, self.alpha)
            state.log_wealth, state.help_wealth = verdict.harm, verdict.help
            state.standing, state.trust = verdict.standing, verdict.trust
            if verdict.contradicted is not None:
                state.contradicted_at = fresh[verdict.contradicted].count
                plan.contradictions += 1
        if fresh:
            state.judged_count = done
            if self.market is not None:
                outcome = note_margins(state, [margin.value for margin in fresh], self.margin_bound)
                if outcome is not None:
                    self.market.gain.learn(*outcome)
        current = [m for m in judgement.margins if m.knowledge_version == state.knowledge_version]
        if not state.contradicted_at or all(margin.count != state.contradicted_at for margin in current):
            return False
        plan.alignment.extend(alignment_samples(judgement.user_id, state, current))
        plan.ranking.append(self.ranking(judgement.user_id, state, "event", state.caused_at, now))
        return True


def _accept(state: UserState, update: KnowledgeUpdate, alpha: float) -> None:
    """Make `update` the user's current knowledge and reset the tests of the old one."""
    answers_pending = state.pending is not None and state.pending.version == update.version
    begin_trial(state, state.pending.features if state.pending is not None and answers_pending else [])
    state.knowledge_version = update.version
    state.knowledge_count = update.count
    state.knowledge_event_time = update.event_time
    state.model_version = update.model_version
    pending = state.pending
    state.anchor = pending.anchor if pending is not None else state.long
    if pending is not None and update.version >= pending.version:
        state.pending = None
    _reset_tests(state, alpha)


def _catch_up(state: UserState, version: int, alpha: float) -> None:
    """Catch up with a store that is ahead of this state, for example because the state was lost.

    Only the version of that knowledge is known. Assume it includes all events so far: then no event it may have seen is
    judged, and the next request carries a version that the store accepts.
    """
    state.knowledge_version = version
    state.knowledge_count = state.count
    state.knowledge_event_time = state.event_time
    state.model_version = ""
    state.anchor = state.long
    state.pending = None
    begin_trial(state, [])
    _reset_tests(state, alpha)


def _reset_tests(state: UserState, alpha: float) -> None:
    state.cusum, state.drifted = 0.0, False
    state.log_wealth, state.contradicted_at = [], 0
    state.trust = initial_trust(state.help_wealth, state.standing, alpha)
