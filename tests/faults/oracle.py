"""What must be true after any fault, as pure functions of what was produced and of what topics and store hold.

Producers stamp every event with its user and a sequence number: its id is `user/seq`. A `Book` has what the broker has
acknowledged, a `Ledger` folds the records of all topics as they are read, and replays the events in one thread.
`violations` compares the two. `unfinished` says what is still to come: not wrong, but wrong if it never comes.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

from schemas.errors import PoisonError
from schemas.reading.reader import EventReader
from schemas.settings import EventSettings, StateSettings
from streams.detection.drift import Detector
from streams.profile.catalogue import ItemVectors
from streams.profile.decoding import decode_record
from streams.profile.fold import Event, fold
from streams.profile.interests import rebuild
from streams.profile.state import UserState, dumps, loads
from streams.service.outbox import partition_of

EVENTS, RANKINGS, REQUESTS = "behaviour-events", "ranking-requests", "knowledge-requests"
OFFERS, UPDATES, LETTERS = "recommendations", "knowledge-updates", "dead-letters"
CHANGELOG = "freshet-streams-user-state-changelog"
TOPICS = (EVENTS, RANKINGS, REQUESTS, OFFERS, UPDATES, LETTERS, CHANGELOG)
# A model change moves interests by a rebuild from the history, which sums in another order.
SAME, REBUILT = 1e-6, 1e-4
SHOWN = 5  # violations of one kind that are spelled out
Place = tuple[str, int, int]  # topic, partition, offset


class _Head(msgspec.Struct, array_like=True, gc=False):
    """The first fields of a `UserState`, up to its count: reading all of a state takes 20 times as long."""

    layout: int
    items: msgspec.Raw
    times: msgspec.Raw
    types: msgspec.Raw
    counts: msgspec.Raw
    seen: msgspec.Raw
    event_ids: msgspec.Raw
    count: int


_count_of = msgspec.msgpack.Decoder(_Head).decode


def event_id(user: str, seq: int) -> str:
    """Return the stamp of a user's event."""
    return f"{user}/{seq}"


def stamp_of(event_id: str) -> tuple[str, int]:
    """Return user and sequence number of a stamped event id."""
    user, _, seq = event_id.rpartition("/")
    return user, int(seq)


@dataclass
class Book:
    """What producers sent and the broker acknowledged."""

    acked: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # user → sequence numbers
    deleted: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # by retention, before read
    bad: set[Place] = field(default_factory=set)  # records that are no events

    def expected(self, user: str) -> set[int]:
        """Return the sequence numbers that must be in the user's state."""
        return self.acked[user] - self.deleted[user]


@dataclass(slots=True)
class Offered:
    """The recommendations of a user so far: what the newest record and the best one include."""

    count: int = 0
    event_time: float = 0.0
    most: int = 0


class Ledger:
    """Everything the topics hold, record by record, each topic's partitions in order of their offsets.

    Args:
        partitions: of every topic keyed by user.
        models: item vectors by model version; the first one is in use when the first event comes.
        detector: constants of the drift statistic, which is not compared.
    """

    def __init__(
        self, partitions: int, models: Mapping[str, ItemVectors], detector: Detector, settings: StateSettings,
    ) -> None:
        self._partitions = partitions
        self._models = models
        self._detector = detector
        self._settings = settings
        self._reader = EventReader(EventSettings())
        self._replayed: dict[str, UserState] = {}
        self._to_replay: defaultdict[str, list[Event]] = defaultdict(list)
        self._again: set[tuple[str, int]] = set()  # places of records whose event the topic had already
        self.stamps: defaultdict[str, set[int]] = defaultdict(set)  # in the partition of their user
        self.resent: Counter[str] = Counter()  # records whose event the topic had already
        self.too_old: defaultdict[str, set[int]] = defaultdict(set)  # for a full history: counted, not applied
        self.states: dict[str, bytes] = {}
        self.counts: dict[str, int] = {}  # events in the newest state
        self.offers: defaultdict[str, Offered] = defaultdict(Offered)
        self.versions: dict[str, int] = {}
        self.letters: Counter[Place] = Counter()
        self.faults: list[str] = []  # violations that only the order of records shows
        self.records: Counter[str] = Counter()
        # What a committed offset must not pass before it had its effect: (offset, user, count or version).
        self._open: defaultdict[tuple[str, int], deque[tuple[int, str, int]]] = defaultdict(deque)

    def note(self, topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None,
             timestamp: float) -> None:
        """Take one record; `timestamp` in seconds."""
        self.records[topic] += 1
        if topic == EVENTS:
            self._event(partition, offset, value, timestamp)
        elif topic == CHANGELOG:
            self._state((key or b"").decode(), value)
        else:
            message = orjson.loads(value or b"{}")
            if topic == OFFERS:
                self._offer(message)
            elif topic == UPDATES:
                self._update(message)
            elif topic == LETTERS:
                self.letters[message["topic"], message["partition"], message["offset"]] += 1
            else:
                number = message["count"] if topic == RANKINGS else message["version"]
                self._open[topic, partition].append((offset, message["user_id"], number))

    def _event(self, partition: int, offset: int, value: bytes | None, timestamp: float) -> None:
        try:
            (event,), _ = decode_record(value, offset, timestamp, False, self._reader)
        except PoisonError:
            return
        user = event.user_id
        if partition_of(user.encode(), self._partitions) != partition:
            return  # not its user's partition: streams sends it there, and that record counts
        seq = stamp_of(event.event_id)[1]
        if seq in self.stamps[user]:
            self.resent[user] += 1
            self._again.add((user, offset))
        else:
            self.stamps[user].add(seq)
            self._open[EVENTS, partition].append((offset, user, len(self.stamps[user])))
        self._to_replay[user].append(event)

    @property
    def replayed(self) -> dict[str, UserState]:
        """The states of a single-threaded replay of all events so far."""
        if self._to_replay:
            events, self._to_replay = self._to_replay, defaultdict(list)
            for user in events:
                self._replayed.setdefault(user, UserState())
            first = next(iter(self._models.values()))
            for user, note in fold(self._replayed, events, first, self._settings, self._detector).items():
                # A replayed event that the topic has for the first time was too old for the history.
                self.too_old[user].update(stamp_of(event.event_id)[1] for event in note.replayed
                                          if (user, event.offset) not in self._again)
            self._again.clear()
        return self._replayed

    def _state(self, user: str, value: bytes | None) -> None:
        if value is None:
            self.faults.append(f"state of {user} was deleted")
            return
        count = _count_of(value).count
        before = self.counts.get(user, 0)
        if count < before:
            self.faults.append(f"the changelog goes back: {user} had {before} events, then {count}")
        self.states[user], self.counts[user] = value, count

    def _offer(self, message: dict[str, Any]) -> None:
        offered = self.offers[message["user_id"]]
        offered.count, offered.event_time = message["count"], message["event_time"]
        offered.most = max(offered.most, offered.count)

    def _update(self, message: dict[str, Any]) -> None:
        user, version = message["user_id"], message["version"]
        if version < self.versions.get(user, 0):
            self.faults.append(f"knowledge of {user} falls from version {self.versions[user]} to {version}")
        self.versions[user] = max(version, self.versions.get(user, 0))

    def ahead(self, committed: Mapping[tuple[str, int], int]) -> list[str]:
        """Return what was committed without having had its effect.

        Args:
            committed: per (topic, partition), read *before* the topics were read up to their ends.
        """
        out = []
        for (topic, partition), upto in committed.items():
            waiting = self._open[topic, partition]
            while waiting and waiting[0][0] < upto:
                offset, user, number = waiting.popleft()
                done = (self._applied(user) if topic == EVENTS else
                        self.offers[user].most if topic == RANKINGS else self.versions.get(user, 0))
                if done < number and (topic, partition, offset) not in self.letters:
                    out.append(f"committed {upto} of {topic}[{partition}], but offset {offset} ({user}, {number}) had "
                               f"no effect: {done}")
        return out

    def _applied(self, user: str) -> int:
        """Return how many of the user's events are in the state, or were too old for it."""
        _ = self.replayed
        return self.counts.get(user, 0) + len(self.too_old[user])

    def wanted(self, user: str, model: str) -> tuple[UserState, float | None]:
        """Return the replayed state with interests as `model` has them, and how exact they are; None = unknown.

        Interests in the space of another model are rebuilt from the history. Events that left the history cannot be
        in them, so they are only comparable while the history has all.
        """
        state = self.replayed[user]
        if not model or model == next(iter(self._models)):
            return state, SAME if not state.late else REBUILT
        rebuilt = loads(dumps(state))
        rebuild(rebuilt, self._models[model], self._settings, model)
        return rebuilt, REBUILT if len(state.items) == state.count else None


def violations(book: Book, ledger: Ledger, store: Mapping[str, int], *, switched: bool = False) -> list[str]:
    """Return everything that is wrong for good, however long one waits; [] = nothing.

    Args:
        store: version of each user's knowledge in the store.
        switched: the model was changed at least once, so interests may have been rebuilt on the way.
    """
    kinds = (ledger.faults, acknowledged_is_there(book, ledger), applied_once(book, ledger),
             equal_to_replay(ledger, switched=switched), knowledge_kept(ledger, store), letters_are_right(book, ledger))
    return [line for kind in kinds for line in _short(kind)]


def unfinished(book: Book, ledger: Ledger) -> list[str]:
    """Return what is still to come: events not in states, states without a recommendation, letters not written."""
    out = []
    replayed = ledger.replayed
    for user in book.acked:
        wanted = replayed.get(user)
        if book.expected(user) - ledger.stamps[user] or wanted is None:
            if book.expected(user):
                out.append(f"{user}: events that are not in their user's partition")
            continue
        count, offered = ledger.counts.get(user, 0), ledger.offers[user]
        if count < wanted.count:
            out.append(f"{user}: {wanted.count} events, {count} in the state")
        elif (offered.count, offered.event_time) != (wanted.count, wanted.event_time):
            out.append(f"{user}: {wanted.count} events until {wanted.event_time:.0f}, recommended for {offered.count} "
                       f"until {offered.event_time:.0f}")
    out += [f"no dead letter for {place}" for place in book.bad - set(ledger.letters)]
    return out


def acknowledged_is_there(book: Book, ledger: Ledger) -> list[str]:
    """Events that the broker acknowledged and nobody deleted are in the topic, in the partition of their user."""
    return [f"{user}: {len(gone)} acknowledged events are gone from the topic, first {min(gone)}"
            for user in book.acked if (gone := book.expected(user) - ledger.stamps[user])]


def applied_once(book: Book, ledger: Ledger) -> list[str]:
    """Every sequence number is in its user's state exactly once, by counts and by the ids the state remembers."""
    out = []
    _ = ledger.replayed
    for user in book.acked:
        expected, data = book.expected(user), ledger.states.get(user)
        if data is None:
            if expected:
                out.append(f"{user}: {len(expected)} events, no state")
            continue
        state = loads(data)
        too_old = len(ledger.too_old[user])
        if state.count + too_old != len(expected):
            out.append(f"{user}: {len(expected)} events, applied {state.count}, too old {too_old}")
        known = [stamp_of(name) for name in state.event_ids]
        if len(set(state.event_ids.values())) != len(known):
            out.append(f"{user}: two events have one number")
        strange = {(name, seq) for name, seq in known if name != user or seq not in expected}
        if strange:
            out.append(f"{user}: events in the state that were never sent, or were deleted: {sorted(strange)[:3]}")
    return out


def equal_to_replay(ledger: Ledger, *, switched: bool = False) -> list[str]:
    """States are those of a single-threaded replay of the topic."""
    out = []
    names = ("items", "times", "types", "counts", "seen", "event_ids", "count", "late", "unknown_items")
    for user, data in ledger.states.items():
        state = loads(data)
        if user not in ledger.replayed:
            out.append(f"{user}: a state without any event")
            continue
        wanted, exact = ledger.wanted(user, state.interest_model)
        different = [name for name in names if getattr(state, name) != getattr(wanted, name)]
        if switched and len(state.items) != state.count:
            exact = None
        if exact is not None and not different:
            for name in ("short", "long"):
                is_, should = (np.frombuffer(getattr(one, name), "<f4") for one in (state, wanted))
                tolerance = REBUILT if switched else exact
                if is_.shape != should.shape or not np.allclose(is_, should, atol=tolerance, rtol=0):
                    different.append(name)
        if different:
            out.append(f"{user}: {', '.join(different)} differ from the replay "
                       f"(count {state.count}, replayed {wanted.count})")
    return out


def knowledge_kept(ledger: Ledger, store: Mapping[str, int]) -> list[str]:
    """The store has at least the version that was announced, and no state knows a version the store lacks."""
    out = [f"{user}: version {version} was announced, the store has {store.get(user, 0)}"
           for user, version in ledger.versions.items() if store.get(user, 0) < version]
    for user, data in ledger.states.items():
        known = loads(data).knowledge_version
        if known > store.get(user, 0):
            out.append(f"{user}: the state knows version {known}, the store has {store.get(user, 0)}")
    return out


def never_fell(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Return the users whose version in the store is lower than it was when it was last looked at."""
    return [f"the store's knowledge of {user} falls from version {version} to {after.get(user, 0)}"
            for user, version in before.items() if after.get(user, 0) < version]


def letters_are_right(book: Book, ledger: Ledger) -> list[str]:
    """Only records that are no events became dead letters (that all did is `unfinished`'s to say)."""
    return [f"dead letter for a good record: {place}" for place in ledger.letters if place not in book.bad]


def repeated(ledger: Ledger) -> int:
    """Return how many events were delivered to states again, beyond those that producers sent again."""
    sent_again = sum(ledger.resent.values())
    return max(0, sum(loads(data).duplicates for data in ledger.states.values()) - sent_again)


def _short(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"… and {len(lines) - SHOWN} more like the last"]
