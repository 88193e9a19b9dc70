"""One batch of one partition from bytes to durable effects. The thin shell between Faust and the planner."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError
from schemas.messages import Judgement, KnowledgeUpdate
from schemas.reading.reader import EventReader
from schemas.settings import Settings
from schemas.topics import (
    ALIGNMENT_SAMPLES,
    BEHAVIOUR_EVENTS,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RANKING_REQUESTS,
)
from streams.decisions.planner import Plan, Planner, States
from streams.profile.decoding import decode_events
from streams.profile.state import dumps, loads
from streams.service.outbox import FaustOutbox, Pair, partition_of, wire
from streams.service.table import UserTable

log = logging.getLogger("freshet.streams")

SOURCES = (BEHAVIOUR_EVENTS.name, JUDGEMENTS.name, KNOWLEDGE_UPDATES.name)

M = TypeVar("M", Judgement, KnowledgeUpdate)
Step = Callable[[States, list[Any], float], Plan]


@dataclass(slots=True)
class Work:
    """Usable records of a batch as aligned lists: their users, what the planner takes, the records."""

    users: list[str]
    inputs: list[Any]
    records: list[Any]

    def only(self, users: set[str]) -> Work:
        """Return the part of these users."""
        kept = [n for n, user in enumerate(self.users) if user in users]
        return Work([self.users[n] for n in kept], [self.inputs[n] for n in kept], [self.records[n] for n in kept])


@dataclass(slots=True)
class Delivery:
    """Effects of a batch that are not durable yet."""

    partition: int
    now: float
    states: list[Pair]
    messages: dict[tuple[str, int], list[Pair]]
    bad: list[tuple[Any, str]]


class Stage:
    """Handles batches of the three source topics.

    Args:
        clock: wall clock, seconds; replaced in tests.
    """

    def __init__(
        self, planner: Planner, table: UserTable, outbox: FaustOutbox, settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.planner = planner
        self.table = table
        self.outbox = outbox
        self.settings = settings
        self.reader = EventReader(settings.events)
        self.clock = clock

    def prepare(self, topic: str, partition: int, records: Sequence[Any]) -> Delivery:
        """Do the part of a batch that needs no broker. Batches of a partition are prepared and delivered in order.

        No record is lost: what cannot be used goes to the dead letters, what belongs to another partition goes there.
        """
        now = self.clock()
        messages: dict[tuple[str, int], list[Pair]] = {}
        bad: list[tuple[Any, str]] = []
        step: Step
        if topic == BEHAVIOUR_EVENTS.name:
            events, good, bad = decode_events(records, now, self.settings.state.future_s, self.reader)
            work = Work([event.user_id for event in events], events, good)
            strays = self._strays(partition, set(work.users))
            if strays:
                messages = _by_partition(topic, work.only(strays), self.settings.kafka.partitions)
                work = work.only(set(work.users) - strays)
            step = self.planner.events
        elif topic == JUDGEMENTS.name:
            work = _parse(Judgement, records, bad, lambda message, record: message)
            step = self.planner.judgements
        else:
            work = _parse(KnowledgeUpdate, records, bad,
                          lambda message, record: (message, (record.timestamp or 0) / 1000.0))
            step = self.planner.updates
        states, plans = self._plan(partition, work, step, now, bad)
        changed = {user: states[user] for plan in plans for user in plan.changed}
        for plan in plans:
            _collect(messages, plan, partition)
        return Delivery(partition, now, self.table.put(partition, changed), messages, bad)

    async def deliver(self, delivery: Delivery) -> None:
        """Make a batch's effects durable; on return its offsets may be committed."""
        jobs: list[Awaitable[Any]] = [self.table.save(delivery.partition, delivery.states)]
        jobs.extend(self.outbox.send(topic, target, pairs) for (topic, target), pairs in delivery.messages.items())
        if delivery.bad:
            jobs.append(self.outbox.send_dead_letters(delivery.bad, delivery.now))
        await asyncio.gather(*jobs)

    def forget(self) -> None:
        """Forget users in memory and their requests on the way: partitions are changing hands."""
        self.table.clear()
        if self.planner.market is not None:
            self.planner.market.outstanding.clear()

    def _strays(self, partition: int, users: set[str]) -> set[str]:
        """Return the users whose state is elsewhere: their producer used another partitioner, or none.

        Hashing takes 5 µs, so only users not in memory are checked.
        """
        partitions = self.settings.kafka.partitions
        return {user for user in users
                if not self.table.known(partition, user) and partition_of(_key(user), partitions) != partition}

    def _plan(
        self, partition: int, work: Work, step: Step, now: float, bad: list[tuple[Any, str]],
    ) -> tuple[States, list[Plan]]:
        """Return the states after the step and what it leads to.

        If the batch fails as a whole it is taken record by record, and the record at fault goes to `bad`.
        """
        users = list(dict.fromkeys(work.users))
        try:
            states = self.table.load(partition, users)
            return states, [step(states, work.inputs, now)]
        except Exception:
            log.exception("a batch of %d records failed; taking them one by one", len(work.inputs))
        return self._plan_singly(partition, work, step, now, bad)

    def _plan_singly(
        self, partition: int, work: Work, step: Step, now: float, bad: list[tuple[Any, str]],
    ) -> tuple[States, list[Plan]]:
        states: States = {}
        plans = []
        for user, what, record in zip(work.users, work.inputs, work.records, strict=True):
            try:
                if user not in states:
                    states.update(self.table.reload(partition, user))
                # A copy, so that a failing record leaves nothing behind.
                trial = {user: loads(dumps(states[user]))} if user in states else {}
                plan = step(trial, [what], now)
            except Exception as error:
                reason = str(error) if isinstance(error, FreshetError) else f"{type(error).__name__}: {error}"
                bad.append((record, f"cannot be applied: {reason}"))
                continue
            states.update(trial)
            plans.append(plan)
        return states, plans


def _parse(
    model: type[M], records: Sequence[Any], bad: list[tuple[Any, str]], build: Callable[[M, Any], Any],
) -> Work:
    """Return the messages in `records` as the planner takes them; unreadable records go to `bad`."""
    work = Work([], [], [])
    for record in records:
        try:
            message = decode(model, record.value)
        except PoisonError as error:
            bad.append((record, error.reason))
            continue
        work.users.append(message.user_id)
        work.inputs.append(build(message, record))
        work.records.append(record)
    return work


def _collect(messages: dict[tuple[str, int], list[Pair]], plan: Plan, partition: int) -> None:
    """Add what a plan wants sent. All topics keyed by user have the same partitions, so it is the source's number."""
    for topic, group in ((RANKING_REQUESTS, plan.ranking), (KNOWLEDGE_REQUESTS, plan.knowledge),
                         (ALIGNMENT_SAMPLES, plan.alignment)):
        if group:
            pairs = messages.setdefault((topic.name, partition), [])
            pairs.extend((_key(message.user_id), wire(message), []) for message in group)


def _by_partition(topic: str, strays: Work, partitions: int) -> dict[tuple[str, int], list[Pair]]:
    """Return strays as they came, but keyed by user, under the partition they belong to."""
    out: dict[tuple[str, int], list[Pair]] = {}
    for user, record in zip(strays.users, strays.records, strict=True):
        key = _key(user)
        pairs = out.setdefault((topic, partition_of(key, partitions)), [])
        pairs.append((key, record.value, list(record.headers)))
    return out


def _key(user_id: str) -> bytes:
    return user_id.encode("utf-8", "surrogatepass")
