"""The pure step of the streams stage: states and messages in, changed states and messages out.

No clock, no broker, no file: the Faust app and an offline replay call the same three methods. Each takes the current
states of the users concerned (users not in it are new), changes them in place, and returns what must be sent. A message
delivered again changes no state, but what it caused is said again: whoever crashed in between may not have said it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
)
from schemas.settings import Settings
from streams.catalogue import ItemVectors
from streams.drift import Detector
from streams.policies import by_period, period_ended
from streams.profile import Event, Touched, fold
from streams.refresh import Policy, decide, priority
from streams.state import Pending, UserState
from streams.trust import judge, renewed

States = dict[str, UserState]


@dataclass(slots=True)
class Plan:
    """What one batch leads to. `changed` names the users whose states must be stored."""

    changed: set[str] = field(default_factory=set)
    ranking: list[RankingRequest] = field(default_factory=list)
    knowledge: list[KnowledgeRequest] = field(default_factory=list)
    alignment: list[AlignmentSample] = field(default_factory=list)
    unknown_users: int = 0  # judgements and updates of users without a state: ignored


class Planner:
    """The stage with its constants.

    Args:
        vectors: item vectors of the fitted model.
        calibration: its thresholds.
        settings: bounds, and overrides of the thresholds.
        model_version: the fitted model's; knowledge of another one is stale. "" = do not compare.
    """

    def __init__(
        self, vectors: ItemVectors, calibration: Calibration, settings: Settings, model_version: str = "",
    ) -> None:
        self.vectors = vectors
        self.settings = settings
        self.detector = Detector.of(calibration, settings.refresh)
        self.policy = Policy.of(calibration, settings.refresh, model_version)
        self.margin_bound = calibration.margin_bound
        self.alpha = settings.refresh.alpha

    def events(self, states: States, events: Sequence[Event], now: float) -> Plan:
        """Fold behaviour events; ask for rankings and, where it is time, for knowledge.

        Args:
            events: in order of arrival.
            now: wall clock, seconds.
        """
        groups: dict[str, list[Event]] = {}
        for event in events:
            group = groups.get(event.user_id)
            if group is None:
                groups[event.user_id] = [event]
            else:
                group.append(event)
        for user in groups:
            if user not in states:
                states[user] = UserState()
        plan = Plan(changed=set(groups))
        for user, note in self._fold(plan, states, groups, now).items():
            if note.live:
                state = states[user]
                plan.ranking.append(self._rank(user, state, "event", note.caused_at, now, self._judged(state, note)))
                if len(note.replayed) < len(groups[user]):
                    self._refresh(plan, user, state, now, again=bool(note.replayed))
                elif state.pending is not None:
                    plan.knowledge.append(self._request(user, state, state.pending))
        return plan

    def before(self, states: States, events: Sequence[Event], now: float) -> Plan:
        """Ask for what a run at the end of a period would have made by now: the `nightly` policy; nothing with others.

        `events` does so itself. Who wants the answer to be there before the events are judged (a replay) calls this
        first and hands the answers to `updates`; nothing is asked twice then.

        Args:
            events: about to be folded; of each user the first counts.
        """
        plan = Plan()
        if self.policy.name == "nightly":
            for event in events:
                state = states.get(event.user_id)
                if state is not None and period_ended(state, event, self.policy.min_history, self.policy.period_s):
                    reason: RefreshReason = "stale" if state.knowledge_version else "cold_start"
                    state.pending = self._ask(state, reason, now)
                    state.last_refresh_count = state.count
                    plan.knowledge.append(self._request(event.user_id, state, state.pending))
                    plan.changed.add(event.user_id)
        return plan

    def _fold(self, plan: Plan, states: States, groups: dict[str, list[Event]], now: float) -> dict[str, Touched]:
        constants = (self.vectors, self.settings.state, self.detector)
        if self.policy.name != "nightly":
            return fold(states, groups, *constants)
        notes: dict[str, Touched] = {}
        for part in by_period(states, groups, self.policy.period_s):
            plan.knowledge.extend(self.before(states, [group[0] for group in part.values()], now).knowledge)
            for user, note in fold(states, part, *constants).items():
                notes[user] = notes[user].then(note) if user in notes else note
        return notes

    def judgements(self, states: States, judgements: Sequence[Judgement], now: float) -> Plan:
        """Bet against users' knowledge with the margins of what they did."""
        plan = Plan()
        for judgement in judgements:
            state = states.get(judgement.user_id)
            if state is None:
                plan.unknown_users += 1
                continue
            plan.changed.add(judgement.user_id)
            self._judge(plan, judgement, state, now)
        return plan

    def updates(self, states: States, updates: Sequence[tuple[KnowledgeUpdate, float]], now: float) -> Plan:
        """Note which knowledge is readable and have its users ranked with it.

        Args:
            updates: each with its record's broker timestamp, seconds.
        """
        plan = Plan()
        newest: dict[str, float] = {}
        for update, caused_at in updates:
            state = states.get(update.user_id)
            if state is None:
                plan.unknown_users += 1
                continue
            if update.version < state.knowledge_version:
                continue
            if update.version > state.knowledge_version:
                _accept(state, update, self.alpha)
                plan.changed.add(update.user_id)
            newest[update.user_id] = caused_at
        for user, caused_at in newest.items():
            plan.ranking.append(self._rank(user, states[user], "knowledge", caused_at, now, []))
        return plan

    def _rank(
        self, user: str, state: UserState, reason: RankingReason, caused_at: float, now: float,
        judged: list[JudgedEvent],
    ) -> RankingRequest:
        return RankingRequest(
            user_id=user, reason=reason, history=list(state.items), seen=list(state.seen), judged=judged,
            count=state.count, knowledge_version=state.knowledge_version,
            knowledge_model_version=state.model_version, trust=state.trust, event_time=state.event_time,
            caused_at=caused_at, requested_at=now)

    def _judged(self, state: UserState, note: Touched) -> list[JudgedEvent]:
        """Return the batch's events to be scored, oldest first.

        Late events are not judged: knowledge may have been made from what came after them. Neither are events the
        knowledge has seen or that were bet on already.
        """
        done = max(state.knowledge_count, state.judged_count)
        position = {count: place for place, count in enumerate(state.counts)}
        judged: dict[int, JudgedEvent] = {}
        for event in (*note.replayed, *note.applied):
            count = state.event_ids.get(event.event_id)
            if count is None or count <= done or event.backfill:
                continue
            place = position.get(count)
            if place is not None and all(later > count for later in state.counts[place + 1:]):
                judged[count] = JudgedEvent(
                    event_id=event.event_id, item_id=event.item_id, position=place, count=count)
        return [judged[count] for count in sorted(judged)]

    def _refresh(self, plan: Plan, user: str, state: UserState, now: float, *, again: bool) -> None:
        reason = decide(state, now, self.policy)
        if reason is not None:
            state.pending = self._ask(state, reason, now)
            state.last_refresh_count = state.count
        elif not (again and state.pending is not None):
            return
        assert state.pending is not None  # noqa: S101 - for the type checker
        plan.knowledge.append(self._request(user, state, state.pending))

    def _ask(self, state: UserState, reason: RefreshReason, now: float) -> Pending:
        earlier = state.pending.version if state.pending else 0
        return Pending(
            version=max(state.knowledge_version, earlier) + 1, reason=reason, anchor=state.long, count=state.count,
            event_id=state.event_id, event_time=state.event_time, caused_at=state.caused_at, requested_at=now,
            priority=priority(state, reason, self.policy))

    def _judge(self, plan: Plan, judgement: Judgement, state: UserState, now: float) -> None:
        newest = max((margin.knowledge_version for margin in judgement.margins), default=0)
        known = max(state.knowledge_version, state.pending.version if state.pending else 0)
        if newest > known:
            _adopt(state, newest, self.alpha)
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
        if fresh:
            state.judged_count = done
        current = [m for m in judgement.margins if m.knowledge_version == state.knowledge_version]
        if state.contradicted_at and any(margin.count == state.contradicted_at for margin in current):
            plan.alignment.extend(_samples(judgement.user_id, state, current))
            plan.ranking.append(self._rank(judgement.user_id, state, "event", state.caused_at, now, []))
            if "contradiction" in self.policy.reasons:
                self._refresh(plan, judgement.user_id, state, now, again=True)

    def _request(self, user: str, state: UserState, pending: Pending) -> KnowledgeRequest:
        """Return the request for what is pending: of all there is by now; `nightly`, of what there was at that time."""
        items, count, event_time = list(state.items), state.count, state.event_time
        if self.policy.name == "nightly":
            items = [item for item, number in zip(items, state.counts, strict=True) if number <= pending.count]
            count, event_time = pending.count, pending.event_time
        return KnowledgeRequest(
            user_id=user, version=pending.version, reason=pending.reason, history=items, count=count,
            event_id=pending.event_id, event_time=event_time, caused_at=pending.caused_at,
            requested_at=pending.requested_at, priority=pending.priority)


def _accept(state: UserState, update: KnowledgeUpdate, alpha: float) -> None:
    """Take `update` as the user's knowledge: bets and drift start anew."""
    state.knowledge_version = update.version
    state.knowledge_count = update.count
    state.knowledge_event_time = update.event_time
    state.model_version = update.model_version
    pending = state.pending
    state.anchor = pending.anchor if pending is not None else state.long
    if pending is not None and update.version >= pending.version:
        state.pending = None
    _start_anew(state, alpha)


def _adopt(state: UserState, version: int, alpha: float) -> None:
    """Catch up with a store that is ahead of this state (it was lost, the store was not).

    Nothing is known of that knowledge but its version; it counts as made from all events so far, so that no bet is
    placed on what it may have seen, and the next request will carry a version the store accepts.
    """
    state.knowledge_version = version
    state.knowledge_count = state.count
    state.knowledge_event_time = state.event_time
    state.model_version = ""
    state.anchor = state.long
    state.pending = None
    _start_anew(state, alpha)


def _start_anew(state: UserState, alpha: float) -> None:
    state.cusum, state.drifted = 0.0, False
    state.log_wealth, state.contradicted_at = [], 0
    state.trust = renewed(state.help_wealth, state.standing, alpha)


def _samples(user: str, state: UserState, margins: Sequence[Margin]) -> list[AlignmentSample]:
    """Return the events on which knowledge did harm, each with the history before it."""
    wealth = max(state.log_wealth, default=0.0)
    samples = []
    for margin in margins:
        if margin.value < 0 and margin.count in state.counts:
            place = state.counts.index(margin.count)
            samples.append(AlignmentSample(
                user_id=user, history=state.items[:place], item_id=margin.item_id, margin=margin.value,
                log_wealth=wealth, knowledge_version=margin.knowledge_version, model_version=state.model_version,
                event_time=state.times[place]))
    return samples
