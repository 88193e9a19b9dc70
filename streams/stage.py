"""One batch of one partition from bytes to durable effects. The thin shell between Faust and the planner."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError
from schemas.messages import Judgement, KnowledgeUpdate
from schemas.settings import Settings
from schemas.topics import (
    ALIGNMENT_SAMPLES,
    BEHAVIOUR_EVENTS,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RANKING_REQUESTS,
)
from streams.decoding import decode_events
from streams.outbox import Outbox, Pair, partition_of, wire
from streams.planner import Plan, Planner, States
from streams.state import UserState, dumps, loads
from streams.table import UserTable

log = logging.getLogger("freshet.streams")

SOURCES = (BEHAVIOUR_EVENTS.name, JUDGEMENTS.name, KNOWLEDGE_UPDATES.name)

M = TypeVar("M", Judgement, KnowledgeUpdate)
Item = tuple[str, Any, Any]  # user, what the planner takes, the record it came from
Step = Callable[[States, list[Any], float], Plan]


class Stage:
    """Handles batches of the three source topics.

    Args:
        clock: wall clock, seconds; replaced in tests.
    """

    def __init__(
        self, planner: Planner, table: UserTable, outbox: Outbox, settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.planner = planner
        self.table = table
        self.outbox = outbox
        self.settings = settings
        self.clock = clock

    async def handle(self, topic: str, partition: int, records: Sequence[Any]) -> None:
        """Process a batch; on return everything it caused is durable and its offsets may be committed.

        No record is lost: what cannot be used is in the dead letters, what belongs to another partition is there.
        """
        now = self.clock()
        bad: list[tuple[Any, str]] = []
        strays: list[tuple[str, Any]] = []
        items: list[Item] = []
        step: Step
        if topic == BEHAVIOUR_EVENTS.name:
            events, good, bad = decode_events(records, now, self.settings.state.future_s)
            items = [(event.user_id, event, record) for event, record in zip(events, good, strict=True)]
            items, strays = self._sort_out(partition, items)
            step = self.planner.events
        elif topic == JUDGEMENTS.name:
            items = _parse(Judgement, records, bad, lambda message, record: message)
            step = self.planner.judgements
        else:
            items = _parse(KnowledgeUpdate, records, bad,
                           lambda message, record: (message, (record.timestamp or 0) / 1000.0))
            step = self.planner.updates
        states, plans = self._plan(partition, items, step, now, bad)
        changed = {user: states[user] for plan in plans for user in plan.changed}
        jobs: list[Awaitable[Any]] = [self.table.save(partition, changed)]
        for name, pairs in _messages(plans).items():
            jobs.append(self.outbox.send(name, partition, pairs))
        for target, group in _by_partition(strays, self.settings.kafka.partitions).items():
            jobs.append(self.outbox.send(topic, target, group))
        if bad:
            jobs.append(self.outbox.send_dead_letters(bad, now))
        await asyncio.gather(*jobs)

    def _sort_out(self, partition: int, items: list[Item]) -> tuple[list[Item], list[tuple[str, Any]]]:
        """Return the items of users whose partition this is, and the strays.

        A producer with another partitioner, or none, puts users where their state is not. Hashing takes 5 µs, so only
        users not in memory are checked.
        """
        partitions = self.settings.kafka.partitions
        strange: set[str] = set()
        for user in {item[0] for item in items}:
            if not self.table.known(partition, user) and partition_of(user, partitions) != partition:
                strange.add(user)
        if not strange:
            return items, []
        return ([item for item in items if item[0] not in strange],
                [(user, record) for user, _, record in items if user in strange])

    def _plan(
        self, partition: int, items: list[Item], step: Step, now: float, bad: list[tuple[Any, str]],
    ) -> tuple[States, list[Plan]]:
        """Return the states after the step and what it leads to.

        If the batch fails as a whole it is taken record by record, and the record at fault goes to `bad`.
        """
        users = list(dict.fromkeys(item[0] for item in items))
        try:
            states = self.table.load(partition, users)
            return states, [step(states, [item[1] for item in items], now)]
        except Exception:
            log.exception("a batch of %d records failed; taking them one by one", len(items))
            self.table.forget(partition, users)
        states, plans = {}, []
        for user, what, record in items:
            try:
                if user not in states:
                    states.update(self.table.load(partition, [user]))
                # A copy, so that a failing record leaves nothing behind.
                plan = step(trial := {user: _copy(states[user])} if user in states else {}, [what], now)
            except Exception as error:
                reason = str(error) if isinstance(error, FreshetError) else f"{type(error).__name__}: {error}"
                bad.append((record, f"cannot be applied: {reason}"))
                continue
            states.update(trial)
            plans.append(plan)
        return states, plans


def _copy(state: UserState) -> UserState:
    return loads(dumps(state))


def _parse(
    model: type[M], records: Sequence[Any], bad: list[tuple[Any, str]], build: Callable[[M, Any], Any],
) -> list[Item]:
    """Return the messages in `records` as the planner takes them; unreadable records go to `bad`."""
    items: list[Item] = []
    for record in records:
        try:
            message = decode(model, record.value)
        except PoisonError as error:
            bad.append((record, error.reason))
        else:
            items.append((message.user_id, build(message, record), record))
    return items


def _messages(plans: Sequence[Plan]) -> dict[str, list[Pair]]:
    """Return what plans want sent, by topic."""
    out: dict[str, list[Pair]] = {}
    for plan in plans:
        for topic, messages in ((RANKING_REQUESTS, plan.ranking), (KNOWLEDGE_REQUESTS, plan.knowledge),
                                (ALIGNMENT_SAMPLES, plan.alignment)):
            if messages:
                out.setdefault(topic.name, []).extend((_key(m.user_id), wire(m), []) for m in messages)
    return out


def _by_partition(strays: Sequence[tuple[str, Any]], partitions: int) -> dict[int, list[Pair]]:
    """Return strays as they came, but keyed by user, under the partition they belong to."""
    out: dict[int, list[Pair]] = {}
    for user, record in strays:
        out.setdefault(partition_of(user, partitions), []).append((_key(user), record.value, list(record.headers)))
    return out


def _key(user_id: str) -> bytes:
    return user_id.encode("utf-8", "surrogatepass")
