"""One batch of one partition from bytes to durable effects. The thin shell between Faust and the planner."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from schemas.errors import FreshetError, is_records_fault
from schemas.liveness import FailureLimit, Progress
from schemas.messages import ERASED, Erasure, Judgement, KnowledgeUpdate, RefreshReason, UserSeen
from schemas.reading.framing import Schemas, frame_of
from schemas.reading.reader import EventReader
from schemas.settings import Settings
from schemas.topics import (
    ALIGNMENT_SAMPLES,
    BEHAVIOUR_EVENTS,
    ERASURES,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RANKING_REQUESTS,
    USER_SEEN,
)
from schemas.watch.context import current
from schemas.watch.instruments import histogram
from schemas.watch.tracing import BatchTrace, Consumed, Traced, tracing
from streams.decisions.forgotten import Forgotten
from streams.decisions.planner import Plan, Planner, States
from streams.profile.decoding import Unusable, decode_events
from streams.profile.state import UserState, dumps, loads
from streams.profile.unusable import WINDOW_S, UnusableShare
from streams.profile.work import Work, parse
from streams.registry.client import SchemaRegistry
from streams.service.changelog import PartitionWriter
from streams.service.outbox import FaustOutbox, Pair, Unsent, partition_of, wire
from streams.service.table import UserTable

log = logging.getLogger("freshet.streams")

SOURCES = (BEHAVIOUR_EVENTS.name, JUDGEMENTS.name, KNOWLEDGE_UPDATES.name, USER_SEEN.name, ERASURES.name)
# Where a user's tombstone ends what was sent of him: a worker that reads it erases what it holds, and passes it on.
ENDED = (RANKING_REQUESTS.name, KNOWLEDGE_REQUESTS.name, ALIGNMENT_SAMPLES.name)

# Counters of `run/streams.json`, since the start of the process. `events`: applied to a state, `late` ones among them.
# `duplicates` and `too_late` (older than a full history) changed no history. `unknown_items`: events whose item the
# model does not know. `unknown_types`: events whose type has no meaning and counts as interest. `apart`: events of
# `events` that are no evidence of interest (against, neutral). `unknown_users`: judgements and updates of users without
# a state. `strays`: events of users whose state is in another partition, sent on to it. `erased`: users whose erasure
# was asked for; `erased_states` of them had a state. `from_before`: records dropped because an erasure came after them.
# The rest is what was asked of other roles.
LOUD = 0.5  # share of unusable events that is logged
COUNTED_BY_PLAN = (
    "events", "duplicates", "late", "too_late", "unknown_items", "unknown_types", "apart", "unknown_users",
    "contradictions")
COUNTED = (
    *COUNTED_BY_PLAN, "strays", "erased", "erased_states", "from_before", "ranking_requests", "knowledge_requests",
    "alignment_samples")
_GROUP = "freshet-streams"
# Topics whose producers may use another partitioner.
_FROM_OUTSIDE = frozenset({BEHAVIOUR_EVENTS.name, USER_SEEN.name, ERASURES.name})
REASONS: tuple[RefreshReason, ...] = get_args(RefreshReason)

_SECONDS = histogram("freshet_stage_seconds")
_PREPARE, _STATES, _MESSAGES = (_SECONDS.labels("streams", stage) for stage in ("prepare", "states", "messages"))

Step = Callable[[States, list[Any], float, float], Plan]


@dataclass(slots=True)
class Delivery:
    """Effects of a batch that are not durable yet, and the right to make them so."""

    writer: PartitionWriter
    now: float
    records: int
    states: list[Pair]
    messages: dict[tuple[str, int], list[Pair]]
    bad: list[Unusable]
    counts: Counter[str]
    strays: dict[int, Any] = field(default_factory=dict)  # id of a message → the record it repeats
    newest: tuple[str, int, float] | None = None  # topic, partition and time of the last record
    trace: BatchTrace = field(default_factory=BatchTrace)


class Stage:
    """Handles batches of the source topics.

    Args:
        progress: counts what is durable.
        clock: wall clock, seconds; replaced in tests.
        ticks: monotonic seconds, for what lasts.
    """

    def __init__(
        self, planner: Planner, table: UserTable, outbox: FaustOutbox, settings: Settings, progress: Progress,
        clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self.planner = planner
        self.table = table
        self.outbox = outbox
        self.settings = settings
        schemas = Schemas() if settings.registry.url else None
        self.registry = SchemaRegistry(settings.registry, schemas) if schemas is not None else None
        self.reader = EventReader(settings.events, schemas)
        self.progress = progress
        self.clock = clock
        self.ticks = ticks
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self.forgotten = Forgotten()
        self._unusable = UnusableShare()
        self._said = -WINDOW_S
        self._limits: defaultdict[int, FailureLimit] = defaultdict(FailureLimit)  # by partition

    async def learn(self, topic: str, records: Sequence[Any], stop: Callable[[], bool]) -> bool:
        """Fetch the schemas that a batch's records were written by, before it is prepared.

        A registry that is away is waited for, as the broker is: the records are sound.

        Args:
            stop: tells whether to give up, since the partition may go to another process.

        Returns:
            Whether the batch may be prepared now.
        """
        if self.registry is None or topic != BEHAVIOUR_EVENTS.name:
            return True
        frames = [frame for one in records if (one.headers or (one.value or b"x")[0] == 0)
                  and (frame := frame_of(one.value, one.headers)) is not None]
        if not frames:
            return True
        self.progress.doing.enter("back_pressure")
        try:
            return await self.registry.learn(frames, stop, self._waits, self.progress.moved)
        finally:
            self.progress.doing.enter("idle")

    def _waits(self, why: str) -> None:
        self.progress.waiting("schema registry" if why else "", None)

    def prepare(self, topic: str, partition: int, records: Sequence[Any]) -> Delivery:
        """Do the part of a batch that needs no broker. Batches of a partition are prepared and delivered in order.

        No record is lost: what cannot be used goes to the dead letters, what belongs to another partition goes there.

        Raises:
            FreshetError: so many records fail that it is not their fault, or stored bytes are no state.
            LostError: the partition is not this process's any more.
            Exception: the store cannot be read.
        """
        writer = self.table.writer(partition)
        now, started = self.clock(), time.monotonic()
        self.progress.in_hand(len(records))
        self.progress.doing.enter("processing")
        messages: dict[tuple[str, int], list[Pair]] = {}
        repeated: dict[int, Any] = {}
        bad: list[Unusable] = []
        counts: Counter[str] = Counter()
        step: Step | None = None
        living, _, counts["from_before"] = self.forgotten.sort_out(topic, records)
        if topic == BEHAVIOUR_EVENTS.name:
            events, good, bad = decode_events(living, now, self.settings.state.future_s, self.reader)
            self._check_share(len(records), bad)
            work = Work([event.user_id for event in events], events, good)
            step = self.planner.events
        elif topic == ERASURES.name:
            work = parse(Erasure, living, bad, lambda message, record: message)
        elif topic == JUDGEMENTS.name:
            work = parse(Judgement, living, bad, lambda message, record: message)
            step = self.planner.judgements
        elif topic == USER_SEEN.name:
            work = parse(UserSeen, living, bad, lambda message, record: (message, (record.timestamp or 0) / 1000.0))
            step = self.planner.seen
        else:
            work = parse(KnowledgeUpdate, living, bad,
                          lambda message, record: (message, (record.timestamp or 0) / 1000.0))
            work = self._without_ghosts(partition, work, messages, counts)
            step = self.planner.updates
        if topic in _FROM_OUTSIDE and (strays := self._strays(partition, set(work.users))):
            messages, repeated = _by_partition(topic, work.only(strays), self.settings.kafka.partitions)
            counts["strays"] = sum(map(len, messages.values()))
            work = work.only(set(work.users) - strays)
        if topic in _FROM_OUTSIDE and step is not None and len(self.forgotten):
            gone = {n for n, user in enumerate(work.users) if self.forgotten.is_old(user, work.records[n])}
            counts["from_before"] += len(gone)
            work = work.without(gone) if gone else work
        trace = self._trace(topic, partition, work, len(records))
        if step is None:
            states_out = self._erase(partition, work, messages, counts)
        else:
            states, plans = self._plan(partition, work, step, now, bad)
            changed = {user: states[user] for plan in plans for user in plan.changed}
            for plan in plans:
                _collect(messages, plan, partition, trace)
                _count(counts, plan)
            states_out = self.table.put(partition, changed)
        current.clear()  # while it is delivered, other batches are prepared
        _PREPARE.observe(time.monotonic() - started)
        return Delivery(writer, now, len(records), states_out, messages, bad, counts, repeated,
                        (topic, partition, (records[-1].timestamp or 0) / 1000.0) if records else None, trace)

    def _without_ghosts(
        self, partition: int, work: Work, messages: dict[tuple[str, int], list[Pair]], counts: Counter[str],
    ) -> Work:
        """Have knowledge erased again that nobody asked for since its user was erased; return the other updates.

        A knowledge worker that has lost its partitions, and does not know it yet, may write after the erasure.
        """
        ghosts = set()
        for n, user in enumerate(work.users):
            if user in self.forgotten:
                state = self.table.load(partition, [user]).get(user) or UserState()
                asked = max(state.knowledge_version, state.pending.version if state.pending else 0)
                if work.inputs[n][0].version > asked:
                    ghosts.add(n)
                    messages.setdefault((KNOWLEDGE_REQUESTS.name, partition), []).append((_key(user), None, []))
        counts["from_before"] += len(ghosts)
        return work.without(ghosts) if ghosts else work

    def _erase(
        self, partition: int, work: Work, messages: dict[tuple[str, int], list[Pair]], counts: Counter[str],
    ) -> list[Pair]:
        """Forget the users and end in `messages` what was sent of them; return the tombstones of their states."""
        out: list[Pair] = []
        for user, record in zip(work.users, work.records, strict=True):
            self.forgotten.add(user, record.timestamp or 0)
            if self.planner.market is not None:
                self.planner.market.outstanding.pop(user, None)
            pairs, held = self.table.erase(partition, [user])
            out += pairs
            counts["erased"] += 1
            counts["erased_states"] += held
            for topic in ENDED:
                messages.setdefault((topic, partition), []).append((_key(user), None, [(ERASED, b"%d" % held)]))
        return out

    def _trace(self, topic: str, partition: int, work: Work, records: int) -> BatchTrace:
        """Return the traces that a batch's records belong to. A look at the headers is all that most records cost."""
        traces, full = tracing(), self.settings.kafka.full
        begin = traces.begins and topic == BEHAVIOUR_EVENTS.name
        most = work.records[0].headers if work.records else ()  # of most records: none, or the same: 50 ns to see it
        if begin or (most and "traceparent" in dict(most)):
            most = None
        others = [n for n, record in enumerate(work.records) if record.headers != most]
        found = [Traced(work.users[n], partition, work.records[n].offset, work.records[n].headers) for n in others
                 if begin or "traceparent" in dict(work.records[n].headers)]
        return traces.batch(Consumed(
            "streams", full(_GROUP), full(topic), records), found, begin) if found else BatchTrace()

    async def deliver(self, delivery: Delivery) -> None:
        """Make a batch's effects durable; on return its offsets may be committed.

        The states go first: messages of a batch whose states the broker refuses are not sent.

        Raises:
            LostError: the partition is not this process's any more; its next owner gets the batch again.
        """
        self.progress.doing.sent()
        try:
            await self._deliver(delivery)
        except BaseException as error:
            delivery.trace.end(error)
            raise
        else:
            delivery.trace.end()
        finally:
            self.progress.doing.arrived()

    async def _deliver(self, delivery: Delivery) -> None:
        started = time.monotonic()
        bad, check = list(delivery.bad), delivery.writer.check
        await self.table.save(delivery.writer, delivery.states)
        saved = time.monotonic()
        _STATES.observe(saved - started)
        await asyncio.gather(
            self.outbox.send_dead_letters(delivery.bad, delivery.now, check=check),
            *[self._send(topic, target, pairs, delivery, bad) for (topic, target), pairs in delivery.messages.items()])
        await self.outbox.send_dead_letters(bad[len(delivery.bad):], delivery.now, check=check)
        check()  # a later owner of this process, after a rebalance, keeps its own account of what is settled
        self.counts.update(delivery.counts)
        last = {one.kind: one.reason for one in bad}
        for kind, letters in Counter(one.kind for one in bad).items():
            self.progress.buried(kind, letters, last[kind])
        _MESSAGES.observe(time.monotonic() - saved)
        if delivery.newest is not None:
            self.progress.finished(*delivery.newest)
        self.progress.produced(sum(map(len, delivery.messages.values())))
        self.progress.done(delivery.records, time.monotonic() - started)

    async def _send(
        self, topic: str, target: int, pairs: Sequence[Pair], delivery: Delivery, bad: list[Unusable],
    ) -> None:
        """Send messages; those that the broker does not take for their size go to `bad`."""
        refused: list[Pair] = []
        full = self.settings.kafka.full(topic)
        await self.outbox.send(topic, target, pairs, refused, delivery.writer.check)
        for pair in refused:
            key, value, _ = pair
            what = f"{len(value or b'')} bytes to {full}[{target}]: larger than the broker takes"
            record = delivery.strays.get(id(pair))
            if record is not None:
                bad.append(Unusable(record, "too_large", f"cannot be sent on to its user's partition: {what}"))
            else:
                bad.append(Unusable(Unsent(full, target, key, value), "too_large", f"cannot be sent: {what}"))

    def counters(self) -> dict[str, Any]:
        """Return the counters for the role's progress file."""
        requested = {_requested(reason): reason for reason in REASONS}
        return {name: number for name, number in self.counts.items() if name not in requested} | {
            "model_version": self.planner.policy.model_version,
            "refreshes_requested": {reason: self.counts[name] for name, reason in requested.items()}} | self._market()

    def _market(self) -> dict[str, Any]:
        """Return what refreshes cost at the moment; nothing with a policy that has no price."""
        market = self.planner.market
        if market is None:
            return {}
        return {"refresh_queue": len(market.outstanding), "refresh_queue_target": market.target,
                "refreshes_forced": market.forced,
                "refresh_price": {"budget": max(0.0, market.budget_price), "queue": market.queue_price,
                                  "both": market.price}}

    def forget(self) -> None:
        """Forget users in memory and their requests on the way: partitions are changing hands."""
        self.table.clear()
        self.forgotten.clear()
        if self.planner.market is not None:
            self.planner.market.outstanding.clear()

    def _check_share(self, records: int, bad: Sequence[Unusable]) -> None:
        """Say loudly, once a minute, that most events cannot be used.

        Raises:
            FreshetError: more than `events.most_bad` of them; their offsets stay as they are.
        """
        ticks = self.ticks()
        share = self._unusable.note(ticks, records, len(bad))
        if not bad or share < min(LOUD, self.settings.events.most_bad):
            return
        text = (f"{share:.0%} of the last minute's {self._unusable.records:,} events are dead letters, the last: "
                f"{bad[-1].reason}; `freshet dead-letters` lists them")
        if share > self.settings.events.most_bad:
            raise FreshetError(f"{text}. FRESHET_EVENTS_MOST_BAD={self.settings.events.most_bad:g} ends streams here")
        if ticks - self._said >= WINDOW_S:
            self._said = ticks
            log.error("%s", text)

    def _strays(self, partition: int, users: set[str]) -> set[str]:
        """Return the users whose state is elsewhere: their producer used another partitioner, or none.

        Hashing takes 5 µs, so only users not in memory are checked.
        """
        partitions = self.settings.kafka.partitions
        return {user for user in users
                if not self.table.known(partition, user) and partition_of(_key(user), partitions) != partition}

    def _plan(
        self, partition: int, work: Work, step: Step, now: float, bad: list[Unusable],
    ) -> tuple[States, list[Plan]]:
        """Return the states after the step and what it leads to.

        If the step fails on the batch as a whole, records are taken one by one, and the one at fault goes to `bad`.
        """
        states = self.table.load(partition, dict.fromkeys(work.users))
        try:
            plan = step(states, work.inputs, now, self.ticks())
        except Exception as error:
            if not is_records_fault(error):
                raise
            log.exception("a batch of %d records failed; taking them one by one", len(work.inputs))
            return self._plan_singly(partition, work, step, now, bad)
        self._limits[partition].passed(len(work.inputs))
        return states, [plan]

    def _plan_singly(
        self, partition: int, work: Work, step: Step, now: float, bad: list[Unusable],
    ) -> tuple[States, list[Plan]]:
        states: States = {}
        plans = []
        limit = self._limits[partition]
        for user, what, record in zip(work.users, work.inputs, work.records, strict=True):
            if user not in states:
                states.update(self.table.reload(partition, user))
            # A copy, so that a failing record leaves nothing behind.
            trial = {user: loads(dumps(states[user]))} if user in states else {}
            try:
                plan = step(trial, [what], now, self.ticks())
            except Exception as error:
                if not is_records_fault(error):
                    raise
                reason = f"cannot be applied: {type(error).__name__}: {error}"
                exceeded = limit.failed()
                if exceeded is not None:
                    raise FreshetError(f"streams: {exceeded}, the last one {reason}; see the log above; nothing of "
                                       "this batch was committed") from error
                bad.append(Unusable(record, "failed", reason))
                continue
            limit.passed(1)
            states.update(trial)
            plans.append(plan)
        return states, plans


def _collect(messages: dict[tuple[str, int], list[Pair]], plan: Plan, partition: int, trace: BatchTrace) -> None:
    """Add what a plan wants sent. All topics keyed by user have the same partitions, so it is the source's number."""
    for topic, group in ((RANKING_REQUESTS, plan.ranking), (KNOWLEDGE_REQUESTS, plan.knowledge),
                         (ALIGNMENT_SAMPLES, plan.alignment)):
        if group:
            pairs = messages.setdefault((topic.name, partition), [])
            pairs.extend((_key(message.user_id), wire(message), trace.headers(message.user_id)) for message in group)


def _count(counts: Counter[str], plan: Plan) -> None:
    for name in COUNTED_BY_PLAN:
        if number := getattr(plan, name):
            counts[name] += number
    for name, group in (("ranking_requests", plan.ranking), ("knowledge_requests", plan.knowledge),
                        ("alignment_samples", plan.alignment)):
        if group:
            counts[name] += len(group)
    for request in plan.knowledge:
        counts[_requested(request.reason)] += 1


def _by_partition(
    topic: str, strays: Work, partitions: int,
) -> tuple[dict[tuple[str, int], list[Pair]], dict[int, Any]]:
    """Return strays as they came, but keyed by user, under the partition they belong to; and the record of each."""
    out: dict[tuple[str, int], list[Pair]] = {}
    repeated: dict[int, Any] = {}
    for user, record in zip(strays.users, strays.records, strict=True):
        key = _key(user)
        pairs = out.setdefault((topic, partition_of(key, partitions)), [])
        pairs.append((key, record.value, list(record.headers)))
        repeated[id(pairs[-1])] = record
    return out, repeated


def _requested(reason: str) -> str:
    return f"requested_{reason}"


def _key(user_id: str) -> bytes:
    return user_id.encode("utf-8", "surrogatepass")
