"""A backup as docs/backup.md describes it, on a new broker: with the folder of states, or the changelog alone."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.artifacts import Registry
from streams.profile.fold import Event
from tests.streams.service.test_app import Role, assert_equal, expected, make_events, produce, value
from tests.workers.brokers import BROKERS, kill_broker, start_broker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CHANGELOG = "freshet-streams-user-state-changelog"
EVENTS = make_events(900)


def send(role: Role, events: list[Event]) -> None:
    produce(role.settings.kafka.bootstrap,
            [("behaviour-events", e.user_id.encode(), value(e), {}) for e in events])


def work(role: Role, events: list[Event]) -> None:
    """Let the role process these events, the first ones on its broker, and end it."""
    send(role, events)
    role.start()
    role.wait(lambda: role.committed("behaviour-events") == len(events))
    assert role.end(signal.SIGTERM) == 0


def changelog(bootstrap: str) -> list[Message]:
    """Return all records of the changelog."""
    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": "backup", "enable.partition.eof": True,
                       "enable.auto.commit": False})
    reader.assign([TopicPartition(CHANGELOG, part, 0) for part in range(2)])
    out: list[Message] = []
    ended = 0
    while ended < 2:
        record = reader.poll(10)
        assert record is not None
        if record.error() is None:
            out.append(record)
        else:
            ended += 1
    reader.close()
    return out


def put_back(bootstrap: str, records: list[Message]) -> None:
    """Create the changelog with these records."""
    topic = NewTopic(CHANGELOG, 2, 1, config={"cleanup.policy": "compact"})
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([topic])[CHANGELOG].result(20)
    sender = Producer({"bootstrap.servers": bootstrap})
    for record in records:
        sender.produce(CHANGELOG, record.value(), record.key(), record.partition(), headers=record.headers() or [])
    assert sender.flush(20) == 0


@pytest.mark.parametrize("kind", BROKERS)
def test_states_are_restored_on_a_new_broker(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    running = start_broker(kind, tmp_path / "a")
    role = Role(running.bootstrap, tmp_path / "home")
    work(role, EVENTS[:600])
    shutil.copytree(tmp_path / "home", tmp_path / "with-states")
    shutil.copytree(tmp_path / "home", tmp_path / "without", ignore=shutil.ignore_patterns("streams"))
    records = changelog(running.bootstrap)
    kill_broker(running)

    for name in ("with-states", "without"):
        (tmp_path / f"broker-{name}").mkdir()
        running = start_broker(kind, tmp_path / f"broker-{name}")
        if name == "without":
            put_back(running.bootstrap, records)
        else:
            (tmp_path / name / "streams" / "origin.json").unlink(missing_ok=True)
        role = Role(running.bootstrap, tmp_path / name)
        assert Registry(tmp_path / name).versions() == ["m1"]
        work(role, EVENTS[550:])  # producers send again what they sent shortly before the backup
        states, truth = role.states(), expected(role, EVENTS)
        assert_equal(states, truth)
        assert sum(state.duplicates for state in states.values()) == 50
        kill_broker(running)
