"""The role on a broker whose logs are not what the committed offsets were counted in: cut, created again, expired."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.topics import TOPICS
from streams.profile.fold import Event
from streams.service.outbox import partition_of
from tests.streams.service.test_app import Role, make_events, produce, value
from tests.workers.brokers import BROKERS, kill_broker, needs_kafka, start_broker
from workers.kafka.topics import create_topics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EVENTS, GROUP, CHANGELOG = "behaviour-events", "freshet-streams", "freshet-streams-user-state-changelog"

# The embedded broker lets nobody else commit for a group that has had members, and members of a group whose topic goes
# away lose their connection.
only_on_kafka = pytest.mark.parametrize("broker", [pytest.param("kafka", marks=[pytest.mark.kafka, needs_kafka])],
                                        indirect=True)


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    running = start_broker(request.param, tmp_path_factory.mktemp("broker"))
    yield running.bootstrap
    kill_broker(running)


@pytest.fixture
def role(broker: str, tmp_path: Path) -> Iterator[Role]:
    """Return the role on a broker without topics and offsets of the tests before."""
    admin = AdminClient({"bootstrap.servers": broker, "log_level": 0})
    delete_topics(admin, [*TOPICS, CHANGELOG])
    delete_group(admin)
    made = Role(broker, tmp_path / "home")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGKILL)


def delete_group(admin: AdminClient) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            admin.delete_consumer_groups([GROUP])[GROUP].result(10)
            return
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return
            if time.monotonic() > deadline:  # until then: a young Kafka has no coordinator for the group yet
                raise
        time.sleep(0.1)


def delete_topics(admin: AdminClient, names: list[str]) -> None:
    there = [name for name in names if name in admin.list_topics(timeout=10).topics]
    for deleted in (admin.delete_topics(there) if there else {}).values():
        deleted.result(10)
    deadline = time.monotonic() + 20
    while set(there) & set(admin.list_topics(timeout=10).topics):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def admin_of(role: Role) -> AdminClient:
    return AdminClient({"bootstrap.servers": role.settings.kafka.bootstrap, "log_level": 0})


def send(role: Role, events: list[Event]) -> None:
    produce(role.settings.kafka.bootstrap, [(EVENTS, e.user_id.encode(), value(e), {}) for e in events])


def commit(role: Role, offset: int) -> None:
    """Commit an offset for both partitions, as the role would."""
    consumer = Consumer({"bootstrap.servers": role.settings.kafka.bootstrap, "group.id": GROUP, "log_level": 0})
    deadline = time.monotonic() + 20
    while True:
        try:
            consumer.commit(offsets=[TopicPartition(EVENTS, p, offset) for p in range(2)], asynchronous=False)
            break
        except KafkaException:  # a young Kafka has no coordinator for the group yet
            assert time.monotonic() < deadline
            time.sleep(0.1)
    consumer.close()


def applied(role: Role) -> int:
    """Stop the role and return how many events its states count."""
    assert role.end(signal.SIGTERM) == 0
    return sum(state.count for state in role.states().values())


def wait_until_read(role: Role, n: int) -> None:
    """Wait until `n` records are committed, and nothing beyond them is."""
    role.wait(lambda: role.committed(EVENTS) == n)


def test_a_log_shorter_than_what_was_committed_is_read_from_its_start(role: Role) -> None:
    commit(role, 400)  # then the broker lost its disk
    events = make_events(400)
    send(role, events)
    role.start()
    wait_until_read(role, 400)
    assert applied(role) == 400
    assert role.log.read_text().count("before the committed offset 400") == 2  # one line a partition


@only_on_kafka
def test_a_log_cut_while_states_are_there_is_read_again_without_counting_twice(role: Role) -> None:
    events = make_events(400)
    send(role, events)
    role.start()
    wait_until_read(role, 400)
    role.end(signal.SIGTERM)
    commit(role, 1000)
    role.start()
    wait_until_read(role, 400)
    assert applied(role) == 400
    assert "before the committed offset 1000" in role.log.read_text()


def test_a_topic_deleted_and_created_again_keeps_its_new_events(role: Role) -> None:
    old = [Event("u", f"i{n}", 1e9 + n, "view", f"old{n}", n, 0.0) for n in range(3)]
    send(role, old)
    role.start()
    wait_until_read(role, 3)
    assert applied(role) == 3
    delete_topics(admin_of(role), [EVENTS])
    create_topics(role.settings.kafka)
    new = [Event("u", f"i{n + 5}", 1e9 + n, "view", f"new{n}", n, 0.0) for n in range(2)]  # no newer than the old ones
    send(role, new)
    role.start()
    wait_until_read(role, 2)
    assert applied(role) == 5


@only_on_kafka
def test_a_topic_created_again_under_the_running_role_keeps_its_new_events(role: Role) -> None:
    send(role, [Event("u", f"i{n}", 1e9 + n, "view", f"old{n}", n, 0.0) for n in range(3)])
    role.start()
    wait_until_read(role, 3)
    delete_topics(admin_of(role), [EVENTS])
    create_topics(role.settings.kafka)
    send(role, [Event("u", f"i{n + 5}", 1e9 + n, "view", f"new{n}", n, 0.0) for n in range(2)])
    assert role.process is not None
    deadline = time.monotonic() + 60
    while role.process.poll() is None and role.committed(EVENTS) != 2:
        assert time.monotonic() < deadline, role.log.read_text()[-3000:]
        time.sleep(0.1)
    if role.process.poll() is not None:  # its supervisor restarts it
        assert role.process.returncode != 0
        role.start()
        wait_until_read(role, 2)
    assert applied(role) == 5


@only_on_kafka
def test_records_deleted_before_they_were_read_are_said_to_be_lost(role: Role) -> None:
    events = make_events(600)
    send(role, events[:200])
    role.start()
    wait_until_read(role, 200)
    assert role.end(signal.SIGTERM) == 0
    send(role, events[200:])
    ends = [len([e for e in events[:500] if partition_of(e.user_id.encode(), 2) == p]) for p in range(2)]
    cuts = [TopicPartition(EVENTS, p, ends[p]) for p in range(2)]
    admin = admin_of(role)  # named: the request ends with the client
    for done in admin.delete_records(cuts).values():
        done.result(10)
    role.start()
    wait_until_read(role, 600)
    assert applied(role) == 300
    assert role.log.read_text().count("before they were read") == 2
    counts = orjson.loads((role.settings.home / "run" / "streams.json").read_bytes())
    assert (counts["offsets_expired"], counts["offsets_missed"]) == (2, 300)


@only_on_kafka
def test_a_group_whose_offsets_expired_starts_over_and_counts_nothing_twice(role: Role) -> None:
    events = make_events(400)
    send(role, events)
    role.start()
    wait_until_read(role, 400)
    assert role.end(signal.SIGTERM) == 0
    delete_group(admin_of(role))
    role.start()
    wait_until_read(role, 400)
    assert applied(role) == 400
    assert role.log.read_text().count("no offset is committed") == 2
