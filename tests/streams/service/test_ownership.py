"""Two streams processes on Apache Kafka: whatever one of them misses, the states stay those of a single one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer

from streams.profile.fold import Event
from tests.streams.service.test_app import Role, assert_equal, expected, make_events, produce, value
from tests.workers.brokers import kill_broker, needs_kafka, start_broker

pytestmark = [pytest.mark.slow, pytest.mark.kafka, needs_kafka, pytest.mark.timeout(300)]
EVENTS = "behaviour-events"
SESSION_S = 3.0
USERS = 30
EXPELLED = "member_id was not recognized"
ROUND, ROUNDS = 30_000, 8  # events
STEP = 3_000


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[str]:
    broker = start_broker("kafka", tmp_path)
    yield broker.bootstrap
    kill_broker(broker)


@pytest.fixture
def two(bootstrap: str, tmp_path: Path) -> Iterator[tuple[Role, Role]]:
    """Two processes that have their partitions."""
    pair = role(bootstrap, tmp_path / "one"), role(bootstrap, tmp_path / "two")
    for each in pair:
        each.start()
    for each in pair:
        each.wait_ready()
    yield pair
    for each in pair:
        assert each.process is not None
        if each.process.poll() is None:
            each.process.kill()


def role(bootstrap: str, home: Path) -> Role:
    made = Role(bootstrap, home)
    made.settings = replace(made.settings, kafka=replace(made.settings.kafka, session_timeout_s=SESSION_S))
    return made


def send(bootstrap: str, events: list[Event]) -> None:
    produce(bootstrap, [(EVENTS, e.user_id.encode(), value(e), {}) for e in events])


def assert_states(made: Role, events: list[Event]) -> None:
    """The role, started again, has the states of a single-threaded replay."""
    made.start()
    made.wait_ready()
    assert made.end(signal.SIGTERM) == 0
    assert_equal(made.states(), expected(made, events))


def dropped(made: Role) -> bool:
    """Whether it had something in hand for a partition that it had lost."""
    return "dropped behaviour-events" in made.log.read_text()


def pause_amid(paused: Role, other: Role, events: list[Event], done: int) -> None:
    """Send events, stop a process while it works on them, and let it go on when the other has done all.

    Args:
        done: offsets committed once all events are processed.
    """
    assert paused.process is not None
    before, expelled = other.committed(EVENTS), paused.log.read_text().count(EXPELLED)
    send(other.settings.kafka.bootstrap, events)
    other.wait(lambda: other.committed(EVENTS) > before)
    paused.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    other.wait(lambda: other.committed(EVENTS) == done)
    time.sleep(max(0.0, stopped + 1.5 * SESSION_S - time.monotonic()))
    paused.process.send_signal(signal.SIGCONT)
    paused.wait(lambda: paused.log.read_text().count(EXPELLED) > expelled)


def test_a_paused_owner_does_not_overwrite_what_its_successor_wrote(
    bootstrap: str, two: tuple[Role, Role], tmp_path: Path,
) -> None:
    events = make_events(ROUNDS * ROUND, USERS)
    sent = 0
    while sent < len(events) and not all(map(dropped, two)):
        paused, other = reversed(two) if dropped(two[0]) else two
        pause_amid(paused, other, events[sent:sent + ROUND], sent + ROUND)
        sent += ROUND
    assert all(map(dropped, two)), "no pause came amid a batch"
    for each in two:
        assert each.end(signal.SIGTERM) == 0
    assert_states(role(bootstrap, tmp_path / "fresh"), events[:sent])  # it knows nothing but the changelog
    for each in two:  # what they left on disk is no newer, and no other, than the changelog
        assert_states(each, events[:sent])


def test_processes_that_come_and_go_repeat_nothing(bootstrap: str, tmp_path: Path) -> None:
    """1 → 3 → 1, the second and third while others recover: what is settled is committed before partitions move."""
    events = make_events(ROUNDS * STEP, USERS)
    roles = [role(bootstrap, tmp_path / name) for name in ("one", "two", "three")]
    parts = [events[start:start + STEP] for start in range(0, len(events), STEP)]
    first = roles[0]
    try:
        first.start()
        first.wait_ready()
        for number, part in enumerate(parts):
            send(bootstrap, part)
            first.wait(lambda: first.committed(EVENTS) > 0)
            if number == 1:
                roles[1].start()
                roles[2].start()
            elif number == len(parts) - 2:
                for each in roles[1:]:
                    each.wait_ready()
                    assert each.end(signal.SIGTERM) == 0
            else:
                time.sleep(0.3)  # a third of the time between commits: some of it is always settled and not committed
        first.wait(lambda: first.committed(EVENTS) == len(events))
        assert first.end(signal.SIGTERM) == 0
    finally:
        for each in roles:
            if each.process is not None and each.process.poll() is None:
                each.process.kill()
    fresh = role(bootstrap, tmp_path / "fresh")
    assert_states(fresh, events)
    assert sum(state.duplicates for state in fresh.states().values()) == 0


def test_events_of_an_aborted_transaction_do_not_count(bootstrap: str, tmp_path: Path) -> None:
    one = role(bootstrap, tmp_path / "one")
    events = make_events(300, USERS)
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": "test", "partitioner": "murmur2_random"})
    producer.init_transactions(30)
    for number, start in enumerate(range(0, 300, 100)):
        producer.begin_transaction()
        for event in events[start:start + 100]:
            producer.produce(EVENTS, value(event), event.user_id.encode())
        assert producer.flush(30) == 0
        if number == 1:
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
    kept = [*events[:100], *events[200:]]
    try:
        one.start()
        one.wait(lambda: one.committed(EVENTS) >= 300)  # and the markers before the last records
        assert one.end(signal.SIGTERM) == 0
    finally:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
    assert_equal(one.states(), expected(one, kept))
