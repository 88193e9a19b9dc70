"""How the parts of the system are: lag by the broker, health by the files of this home, what is wrong and what to do.

A role that runs on another host has no files here; its lag is known all the same, since the broker has its offsets.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from confluent_kafka import KafkaException

from schemas.liveness import counters_file
from schemas.settings import Settings
from schemas.topics import (
    BEHAVIOUR_EVENTS,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RANKING_REQUESTS,
)
from workers.home.stack_info import find
from workers.kafka.lag import GUARD_GROUP, KNOWLEDGE_GROUP, RANKING_GROUP, STREAMS_GROUP, GroupLag
from workers.kafka.topics import partitions
from workers.supervision.health import Health, read
from workers.views.summary import Minute, Problem, RoleState, Spread

log = logging.getLogger(__name__)
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "streams": (STREAMS_GROUP, (BEHAVIOUR_EVENTS.name, JUDGEMENTS.name, KNOWLEDGE_UPDATES.name)),
    "knowledge": (KNOWLEDGE_GROUP, (KNOWLEDGE_REQUESTS.name,)),
    "ranking": (RANKING_GROUP, (RANKING_REQUESTS.name,)),
    "guard": (GUARD_GROUP, (JUDGEMENTS.name,)),
}
_RATES_S = 60.0
_LATE_S, _LAG = 60.0, 1000  # when knowledge counts as late, and when lag is worth a word
_RECENT_LETTERS = 10  # minutes
# State of a role → section of the runbook.
_SECTIONS = {"waiting": "Broker or store is away", "stalled": "Lag grows"}
_CURES = {
    "waiting": "nothing is lost: it goes on when the server is back; look at the server and the network between",
    "starting": "wait; its log says what it is doing",
    "stalled": "it ends by itself and starts again; its log says what it was doing",
    "crashed": "its log has the rest; `freshet doctor` suggests a fix",
    "hung": "look at the machine: no processor, no memory, or a stopped process"}


@dataclass(frozen=True, slots=True)
class Offsets:
    """What the broker said of a group at a moment (monotonic seconds): sums over partitions."""

    at: float
    committed: int
    end: int

    @property
    def lag(self) -> int:
        """Records that wait."""
        return max(0, self.end - self.committed)


@dataclass(slots=True)
class GroupSamples:
    """The last samples of a role's group, oldest first, over the last minute."""

    samples: deque[Offsets] = field(default_factory=deque)

    def add(self, one: Offsets) -> None:
        """Take a sample."""
        self.samples.append(one)
        while len(self.samples) > 2 and one.at - self.samples[0].at > _RATES_S:
            self.samples.popleft()

    def rate(self, of: str) -> float | None:
        """Return how fast `committed` or `end` grows, per second; None = there are not two samples."""
        if len(self.samples) < 2:
            return None
        first, last = self.samples[0], self.samples[-1]
        return max(0.0, (getattr(last, of) - getattr(first, of)) / max(1e-3, last.at - first.at))


class Status:
    """Samples for one thread; the results may be read from others."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._readers: dict[str, GroupLag] = {}
        self._sampled: dict[str, GroupSamples] = {role: GroupSamples() for role in GROUPS}
        self.events = 0
        """Events that came in between the last two samples."""
        self._events_end: int | None = None
        self.broker_problem = ""

    def sample(self, now: float) -> None:
        """Ask the broker, at `now` (monotonic seconds). A broker that is away is noted."""
        try:
            there = partitions(self._settings.kafka, {name for _, names in GROUPS.values() for name in names})
            for role, (group, names) in GROUPS.items():
                if role not in self._readers:
                    self._readers[role] = GroupLag(self._settings.kafka, group)
                wanted = [(name, number) for name in names for number in range(there.get(name, 0))]
                found = self._readers[role].offsets(wanted)
                if role == "streams":
                    self._count_events(sum(end for (name, _), (_, end) in found.items() if name == names[0]))
                    found = {part: pair for part, pair in found.items() if part[0] == names[0]}
                self._sampled[role].add(Offsets(now, sum(done for done, _ in found.values()),
                                                sum(end for _, end in found.values())))
            self.broker_problem = ""
        except KafkaException as error:
            self.broker_problem = error.args[0].str()

    def close(self) -> None:
        """Disconnect."""
        for reader in self._readers.values():
            reader.close()

    def _count_events(self, end: int) -> None:
        self.events = 0 if self._events_end is None else max(0, end - self._events_end)
        self._events_end = end

    @property
    def events_per_s(self) -> float | None:
        """Events that come in."""
        return self._sampled["streams"].rate("end")

    @property
    def lists_per_s(self) -> float | None:
        """Ranking requests that are done."""
        return self._sampled["ranking"].rate("committed")

    def health(self) -> Health | None:
        """Return the health of the stack on this home, None if none runs."""
        return read(self._settings, time.monotonic())

    def roles(self, health: Health | None) -> tuple[RoleState, ...]:
        """Return how the roles are: those of this home, then those that only the broker knows."""
        running = find(self._settings.home)
        out = []
        here = {one.name: one for one in health.roles} if health else {}
        for name, one in here.items():
            known = self._sampled.get(name)
            offsets = known.samples[-1] if known and known.samples else None
            lag_s = self._lag_seconds(name) if running else None
            out.append(RoleState(
                name, one.state, one.reason, offsets.lag if offsets else one.lag, lag_s,
                known.rate("committed") if known else None, one.dead_letters, one.restarts, one.error))
        for name, known in self._sampled.items():
            if name not in here and known.samples and known.samples[-1].committed:
                out.append(RoleState(name, "elsewhere", "not on this home", known.samples[-1].lag, None,
                                     known.rate("committed"), None, 0, ""))
        return tuple(out)

    def counters(self, role: str) -> Mapping[str, object]:
        """Return the counters of a role on this home, {} if there are none."""
        try:
            found = orjson.loads(counters_file(self._settings.home, role).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _lag_seconds(self, role: str) -> float | None:
        topics = self.counters(role).get("partitions")
        ages = [float(one["lag_s"]) for parts in topics.values() for one in parts.values()] \
            if isinstance(topics, dict) else []
        return max(ages, default=None)


def problems(
    roles: Sequence[RoleState], health: Health | None, minutes: Sequence[Minute], freshness: Spread, broker: str,
    model: str,
) -> Iterator[Problem]:
    """Yield what is wrong, the worst first. Pure.

    Args:
        minutes: the last hour, oldest first.
        freshness: seconds from cause to knowledge.
        broker: why the broker does not answer, "" = it does.
        model: why the model version in use cannot be read, "" = it can.
    """
    if broker:
        yield Problem(f"the broker does not answer: {broker}", _CURES["waiting"], "Broker or store is away")
    for role in roles:
        if role.state not in ("ok", "elsewhere"):
            yield Problem(f"{role.name}: {role.reason or role.state}", _CURES.get(role.state, ""),
                          _SECTIONS.get(role.state, "A role is down"))
    if health is not None:
        named = {f"{one.name}: " for one in health.roles}
        for reason in health.reasons:
            if not any(reason.startswith(name) for name in named):
                yield Problem(reason, "look at the supervisor's log", "A role is down")
    if model:
        yield Problem(f"the model version in use cannot be read: {model}", "`freshet doctor` says what is missing",
                      "A version cannot be loaded")
    for role in roles:
        if (role.lag or 0) > _LAG and role.per_s is not None and role.lag is not None and \
                role.lag > _RATES_S * max(role.per_s, 1.0):
            yield Problem(f"{role.name} is {role.lag:,} records behind and finishes {role.per_s:.0f} a second",
                          f"run another instance: `freshet up --roles {role.name}`", "Lag grows")
    letters = sum(one.letters for one in minutes[-_RECENT_LETTERS:])
    if letters:
        yield Problem(f"{letters:,} dead letters in {_RECENT_LETTERS} minutes", "the page of dead letters says why",
                      "Dead letters come in")
    lately = any(one.refreshes for one in minutes[-_RECENT_LETTERS:])
    if lately and freshness.p90 is not None and freshness.p90 > _LATE_S:
        yield Problem(f"one refresh in ten takes longer than {freshness.p90:.0f} s",
                      "add a knowledge instance, or set a budget with FRESHET_REFRESH_CALLS_PER_1000",
                      "Knowledge is late")
