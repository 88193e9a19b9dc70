"""The oracle finds every planted violation, and nothing where nothing is wrong: one that cannot fail proves nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from schemas.errors import PoisonError
from schemas.reading.reader import EventReader
from schemas.settings import EventSettings, RefreshSettings, StateSettings
from streams.detection.drift import Detector
from streams.profile.catalogue import ItemVectors
from streams.profile.decoding import decode_record
from streams.profile.fold import Event, fold
from streams.profile.state import UserState, dumps, loads
from streams.service.outbox import partition_of
from tests.faults.oracle import (
    CHANGELOG,
    EVENTS,
    LETTERS,
    OFFERS,
    RANKINGS,
    REQUESTS,
    UPDATES,
    Book,
    Ledger,
    event_id,
    never_fell,
    repeated,
    stamp_of,
    unfinished,
    violations,
)
from tests.faults.workload import BAD
from tests.workers.fitted import CALIBRATION

PARTITIONS, ITEMS, BASE = 4, [f"i{n}" for n in range(12)], 1_700_000_000
VECTORS = {name: ItemVectors(ITEMS, np.random.default_rng(seed).normal(size=(12, 8)).astype(np.float32))
           for seed, name in enumerate(("m1", "m2"))}
DETECTOR, STATE = Detector.of(CALIBRATION, RefreshSettings()), StateSettings(history=6, event_ids=4)


class World:
    """A system that works, in a few lines: it writes the topics as the real one would, and its parts can be broken."""

    def __init__(self) -> None:
        self.book = Book()
        self.ledger = Ledger(PARTITIONS, VECTORS, DETECTOR, STATE)
        self.store: dict[str, int] = {}
        self.states: dict[str, UserState] = {}
        self.offsets: dict[tuple[str, int], int] = {}

    def write(self, topic: str, user: str, value: bytes | None, partition: int | None = None) -> int:
        place = topic, partition_of(user.encode(), PARTITIONS) if partition is None else partition
        offset = self.offsets.get(place, 0)
        self.offsets[place] = offset + 1
        self.ledger.note(*place, offset, user.encode(), value, 1.0)
        return offset

    def send(self, user: str, seq: int, *, at: int | None = None) -> bytes:
        value = orjson.dumps({"user_id": user, "item_id": ITEMS[seq % 12], "event_time": BASE + (at or seq),
                              "event_id": event_id(user, seq)})
        self.write(EVENTS, user, value)
        self.book.acked[user].add(seq)
        return value

    def apply(self, user: str, seq: int, *, at: int | None = None) -> UserState:
        state = self.states.setdefault(user, UserState(interest_model="m1"))
        fold({user: state}, {user: [Event(user, ITEMS[seq % 12], float(BASE + (at or seq)), "interaction",
                                          event_id(user, seq), self.offsets[EVENTS, self.part(user)] - 1, 1.0)]},
             VECTORS["m1"], STATE, DETECTOR)
        self.write(CHANGELOG, user, dumps(state))
        return state

    def offer(self, user: str, count: int, time: float) -> None:
        self.write(OFFERS, user, orjson.dumps({"user_id": user, "count": count, "event_time": BASE + time}))

    def learn(self, user: str, version: int) -> None:
        self.store[user] = version
        self.write(UPDATES, user, orjson.dumps({"user_id": user, "version": version}))

    @staticmethod
    def part(user: str) -> int:
        return partition_of(user.encode(), PARTITIONS)

    def wrong(self, **options: Any) -> list[str]:
        return violations(self.book, self.ledger, self.store, **options)

    def left(self) -> list[str]:
        return unfinished(self.book, self.ledger)


@pytest.fixture
def world() -> World:
    """Two users with ten events each, knowledge, and a bad record; all is well."""
    world = World()
    for seq in range(10):
        for user in ("a", "b"):
            world.send(user, seq)
            world.apply(user, seq)
            world.offer(user, seq + 1, seq)
    for version in (1, 2):
        world.learn("a", version)
    world.book.bad.add((EVENTS, 0, world.write(EVENTS, "x", b"not json", partition=0)))
    world.write(LETTERS, "x", orjson.dumps({"topic": EVENTS, "partition": 0, "offset": 0 if world.part("a") else 10}))
    world.ledger.letters.clear()
    world.ledger.letters.update(world.book.bad)
    return world


def save(world: World, user: str, **changed: Any) -> None:
    """Write a state that differs from the right one."""
    state = loads(dumps(world.states[user]))
    for name, value in changed.items():
        setattr(state, name, value)
    world.write(CHANGELOG, user, dumps(state))


def test_nothing_is_wrong_where_nothing_is_wrong(world: World):
    assert world.wrong() == []
    assert world.left() == []
    assert repeated(world.ledger) == 0


def test_an_event_lost_from_a_state(world: World):
    world.send("a", 10)
    assert any("10 in the state" in line for line in world.left())
    assert any("11 events, applied 10" in line for line in world.wrong())


def test_an_event_applied_twice(world: World):
    save(world, "a", count=11)
    assert any("10 events, applied 11" in line for line in world.wrong())


def test_an_event_lost_and_another_applied_twice_keeps_the_count(world: World):
    state = world.states["a"]
    save(world, "a", items=[*state.items[:-1], state.items[0]])
    assert any("items differ from the replay" in line for line in world.wrong())


def test_an_event_that_nobody_sent(world: World):
    ids = dict(world.states["a"].event_ids)
    ids.pop(next(iter(ids)))
    save(world, "a", event_ids=ids | {event_id("a", 99): 11})
    assert any("never sent" in line for line in world.wrong())


def test_interests_that_are_not_those_of_the_events(world: World):
    short = np.frombuffer(world.states["a"].short, "<f4") + np.float32(0.001)
    save(world, "a", short=short.tobytes())
    assert any("short differ from the replay" in line for line in world.wrong())


def test_events_in_the_wrong_order(world: World):
    items = list(world.states["a"].items)
    items[2], items[3] = items[3], items[2]
    save(world, "a", items=items)
    assert any("items differ" in line for line in world.wrong())


def test_an_older_state_written_after_a_newer_one(world: World):
    """What compaction and recovery keep is the last record, not the newest state."""
    older = UserState(interest_model="m1")
    fold({"a": older}, {"a": [Event("a", "i0", BASE, "interaction", event_id("a", 0), 0, 1.0)]}, VECTORS["m1"], STATE,
         DETECTOR)
    world.write(CHANGELOG, "a", dumps(older))
    save(world, "a")  # even if the right one comes back
    assert any("goes back" in line for line in world.wrong())


def test_a_state_that_is_gone(world: World):
    world.write(CHANGELOG, "b", None)
    assert any("deleted" in line for line in world.wrong())
    del world.ledger.states["b"]
    assert any("no state" in line for line in world.wrong())


def test_knowledge_that_falls_on_the_topic(world: World):
    world.learn("a", 1)
    world.store["a"] = 2
    assert any("falls from version 2 to 1" in line for line in world.wrong())


def test_knowledge_that_falls_in_the_store(world: World):
    assert never_fell({"a": 2, "b": 1}, {"a": 2, "b": 1}) == []
    assert any("falls from version 2 to 1" in line for line in never_fell({"a": 2}, {"a": 1}))
    assert never_fell({"a": 2}, {})


def test_knowledge_announced_but_not_stored(world: World):
    world.store["a"] = 1
    assert any("announced" in line for line in world.wrong())


def test_a_state_that_knows_a_version_the_store_lacks(world: World):
    save(world, "b", knowledge_version=1)
    assert any("the state knows version 1" in line for line in world.wrong())


def test_an_event_without_a_recommendation(world: World):
    world.send("a", 10)
    world.apply("a", 10)
    assert any("recommended for 10" in line for line in world.left())
    world.offer("a", 11, 9)  # it counts the event, but is older than it
    assert world.left()
    world.offer("a", 11, 10)
    assert world.left() == []


def test_an_older_recommendation_after_the_newest(world: World):
    world.offer("a", 3, 2)
    assert any("recommended for 3" in line for line in world.left())


def test_a_bad_record_without_a_dead_letter(world: World):
    world.ledger.letters.clear()
    assert any("no dead letter" in line for line in world.left())


def test_a_good_record_among_the_dead_letters(world: World):
    world.write(LETTERS, "x", orjson.dumps({"topic": EVENTS, "partition": 1, "offset": 3}))
    assert any("good record" in line for line in world.wrong())


def test_an_acknowledged_event_that_the_topic_lost(world: World):
    world.book.acked["a"].add(10)
    assert any("gone from the topic" in line for line in world.wrong())
    world.book.deleted["a"].add(10)  # by retention, said to be so
    assert world.wrong() == []


def test_a_stray_that_was_never_sent_on_to_its_partition(world: World):
    value = orjson.dumps({"user_id": "a", "item_id": "i1", "event_time": BASE, "event_id": event_id("a", 10)})
    world.write(EVENTS, "a", value, partition=(world.part("a") + 1) % PARTITIONS)
    world.book.acked["a"].add(10)
    assert any("not in their user's partition" in line for line in world.left())


@pytest.mark.parametrize(("topic", "message"), [
    (RANKINGS, {"user_id": "a", "count": 11}), (REQUESTS, {"user_id": "a", "version": 3})])
def test_a_commit_ahead_of_its_effect(world: World, topic: str, message: dict[str, Any]):
    offset = world.write(topic, "a", orjson.dumps(message))
    assert world.ledger.ahead({(topic, world.part("a")): offset}) == []
    assert any("had no effect" in line for line in world.ledger.ahead({(topic, world.part("a")): offset + 1}))


def test_a_commit_of_events_ahead_of_their_state(world: World):
    done = {(EVENTS, number): world.offsets.get((EVENTS, number), 0) for number in range(PARTITIONS)}
    assert world.ledger.ahead(done) == []
    world.send("a", 10)
    at = EVENTS, world.part("a")
    assert world.ledger.ahead({at: world.offsets[at] - 1}) == []
    assert any("had no effect" in line for line in world.ledger.ahead({at: world.offsets[at]}))


def test_duplicates_of_producers_are_no_repetition_but_deliveries_are(world: World):
    value = world.send("a", 9)  # the same event once more
    world.states["a"].duplicates += 1
    save(world, "a")
    assert (world.wrong(), repeated(world.ledger)) == ([], 0)
    world.states["a"].duplicates += 3  # three records were delivered again
    save(world, "a")
    assert (world.wrong(), repeated(world.ledger)) == ([], 3)
    assert value


def test_late_events_and_events_older_than_a_full_history(world: World):
    for seq, at in ((10, 8), (11, 1)):  # one within the history of six events, one before it
        world.send("a", seq, at=at)
        world.apply("a", seq, at=at)
    world.offer("a", world.states["a"].count, 9)
    assert world.states["a"].count == 11
    assert (world.wrong(), world.left()) == ([], [])
    save(world, "a", count=12)
    assert world.wrong()


def test_interests_in_another_models_space(world: World):
    for seq in range(4):
        world.send("c", seq)
        world.apply("c", seq)
        world.offer("c", seq + 1, seq)
    wanted, exact = world.ledger.wanted("c", "m2")
    assert exact is not None
    save(world, "c", short=wanted.short, long=wanted.long, interest_model="m2")
    assert world.wrong(switched=True) == []
    save(world, "c", short=world.states["c"].short, interest_model="m2")  # still those of the old model
    assert any("short, long differ" in line for line in world.wrong(switched=True))


def test_the_head_of_a_state_has_its_count(world: World):
    for user, data in world.ledger.states.items():
        assert world.ledger.counts[user] == loads(data).count == 10


def test_a_stamp_is_read_back():
    assert stamp_of(event_id("u/1", 42)) == ("u/1", 42)


def test_bad_records_of_the_workload_are_no_events():
    reader = EventReader(EventSettings())
    for value in BAD:
        with pytest.raises(PoisonError):
            decode_record(value, 0, 1.0, False, reader)
