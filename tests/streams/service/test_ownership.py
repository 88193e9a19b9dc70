"""Two streams processes on Apache Kafka: whatever one of them misses, the states stay those of a single one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streams.profile.fold import Event
from tests.faults.proxy import Network
from tests.streams.service.test_app import Role, assert_equal, expected, make_events, produce, value
from tests.workers.brokers import KafkaNode, kafka_home, kill_broker, needs_kafka, start_broker

pytestmark = [pytest.mark.slow, pytest.mark.kafka, needs_kafka, pytest.mark.timeout(300)]
EVENTS = "behaviour-events"
CHANGELOG = "freshet-streams-user-state-changelog"
SESSION_S = 3.0
USERS = 30
EXPELLED = "member_id was not recognized"
ROUND, ROUNDS = 100_000, 4  # events; a batch has 10,000 at most, and each process has half of them
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


def changelog_ends(consumer: Consumer) -> list[int]:
    return [consumer.get_watermark_offsets(TopicPartition(CHANGELOG, number), timeout=10)[1] for number in range(2)]


def dropped(made: Role) -> bool:
    """Whether it had something in hand for a partition that it had lost."""
    return "dropped behaviour-events" in made.log.read_text()


def break_amid(
    broken: Role, other: Role, begin: Callable[[], None], end: Callable[[], None], events: list[Event], done: int,
) -> None:
    """Send events, break a process while it works on them, and heal it when the other has done all.

    It is broken as soon as its first batch is in the changelog: four more are on their way then. The offsets would say
    so a second later, when a fast machine has nothing in hand any more.

    Args:
        begin: breaks it, beyond the session time-out.
        end: heals it.
        done: offsets committed once all events are processed.
    """
    bootstrap, expelled = other.settings.kafka.bootstrap, broken.log.read_text().count(EXPELLED)
    sending = threading.Thread(target=send, args=(bootstrap, events))
    with closing(Consumer({"bootstrap.servers": bootstrap, "group.id": "test"})) as consumer:
        before = changelog_ends(consumer)
        sending.start()
        other.wait(lambda: all(now > then for now, then in zip(changelog_ends(consumer), before, strict=True)))
        begin()
    begun = time.monotonic()
    sending.join()
    other.wait(lambda: other.committed(EVENTS) == done, 120)
    time.sleep(max(0.0, begun + 1.5 * SESSION_S - time.monotonic()))
    end()
    broken.wait(lambda: broken.log.read_text().count(EXPELLED) > expelled)


def test_a_paused_owner_does_not_overwrite_what_its_successor_wrote(
    bootstrap: str, two: tuple[Role, Role], tmp_path: Path,
) -> None:
    events = make_events(ROUNDS * ROUND, USERS)
    sent = 0
    while sent < len(events) and not all(map(dropped, two)):
        paused, other = reversed(two) if dropped(two[0]) else two
        assert paused.process is not None
        signals = [partial(paused.process.send_signal, which) for which in (signal.SIGSTOP, signal.SIGCONT)]
        break_amid(paused, other, signals[0], signals[1], events[sent:sent + ROUND], sent + ROUND)
        sent += ROUND
    assert all(map(dropped, two)), "no pause came amid a batch"
    for each in two:
        assert each.end(signal.SIGTERM) == 0
    assert_states(role(bootstrap, tmp_path / "fresh"), events[:sent])  # it knows nothing but the changelog
    for each in two:  # what they left on disk is no newer, and no other, than the changelog
        assert_states(each, events[:sent])


def test_an_owner_that_was_cut_off_does_not_either(tmp_path: Path) -> None:
    """The cut holds what the owner sent, and lets it through at its end, when the partition is another's."""
    home = kafka_home()
    assert home is not None
    ports: list[int] = []

    def properties(port: int, free: Callable[[], int]) -> list[str]:
        ports.extend([free(), free()])
        return [f"listeners=PLAINTEXT://127.0.0.1:{port},CUT://127.0.0.1:{ports[0]},CONTROLLER://127.0.0.1:{port + 1}",
                f"advertised.listeners=PLAINTEXT://127.0.0.1:{port},CUT://127.0.0.1:{ports[1]}",
                "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,CUT:PLAINTEXT"]

    broker = KafkaNode(tmp_path / "node", home, properties)
    with Network(ports[1], ports[0]) as network:
        far, near = role(f"127.0.0.1:{ports[1]}", tmp_path / "far"), role(broker.bootstrap, tmp_path / "near")
        try:
            for each in (far, near):
                each.start()
            for each in (far, near):
                each.wait_ready()
            events = make_events(ROUNDS * ROUND, USERS)
            sent = 0
            while sent < len(events) and not dropped(far):
                break_amid(far, near, network.cut, network.heal, events[sent:sent + ROUND], sent + ROUND)
                sent += ROUND
            assert dropped(far), "no cut came amid a batch"
            for each in (far, near):
                assert each.end(signal.SIGTERM) == 0
            assert_states(role(broker.bootstrap, tmp_path / "fresh"), events[:sent])
            assert_states(far, events[:sent])
        finally:
            for each in (far, near):
                if each.process is not None and each.process.poll() is None:
                    each.process.kill()
            kill_broker(broker)


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
