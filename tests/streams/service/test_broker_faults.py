"""The role while its broker is restarted, killed or replaced, and when logs are lost."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.settings import WatchdogSettings
from schemas.topics import CHANGELOG
from streams.profile.fold import Event
from tests.streams.service.test_app import Role, assert_equal, expected, make_events, produce, value
from tests.workers.brokers import KafkaNode, kafka_home, needs_kafka
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics

pytestmark = [pytest.mark.slow, pytest.mark.kafka, needs_kafka, pytest.mark.timeout(400)]
EVENTS = "behaviour-events"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[KafkaNode]:
    home = kafka_home()
    assert home is not None
    running = KafkaNode(tmp_path, home)
    yield running
    running.kill()


@pytest.fixture
def role(node: KafkaNode, tmp_path: Path) -> Iterator[Role]:
    made = Role(node.bootstrap, tmp_path / "home")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGKILL)


def keep_running(role: Role, done: Callable[[], bool], seconds: float) -> int:
    """Wait until `done`, starting the role again whenever it ended, non-zero; return how often."""
    deadline, starts = time.monotonic() + seconds, 0
    while not done():
        assert time.monotonic() < deadline, role.log.read_text()[-3000:]
        assert role.process is not None
        if role.process.poll() is not None:
            assert role.process.returncode != 0
            role.start()
            starts += 1
        time.sleep(0.1)
    return starts


def applied(role: Role) -> int:
    assert role.end(signal.SIGTERM) == 0
    return sum(state.count for state in role.states().values())


class Load:
    """Events of one user after the other, sent until told to stop; each is there for certain."""

    def __init__(self, bootstrap: str) -> None:
        self.sent = 0
        self._stop = threading.Event()
        self._producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random",
                                   "enable.idempotence": True, "reconnect.backoff.max.ms": 500, "log_level": 0,
                                   "message.timeout.ms": 120_000})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            n = self.sent
            event = Event(f"u{n % 40}", f"i{n % 30}", 1e9 + n, "view", f"e{n}", n, 0.0)
            self._producer.produce(EVENTS, value(event), event.user_id.encode())
            self._producer.poll(0)
            self.sent += 1

    def end(self) -> int:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(120) == 0
        return self.sent


def test_a_broker_restarted_clean_and_killed_under_load_loses_nothing(node: KafkaNode, role: Role) -> None:
    role.start()
    role.wait_ready()
    load = Load(node.bootstrap)
    try:
        for clean in (True, False, True):
            before = load.sent
            time.sleep(1.0)
            (node.stop if clean else node.kill)()
            node.start()
            started = time.monotonic()
            keep_running(role, lambda before=before: role.committed(EVENTS) > before, 60)  # type: ignore[misc]
            print("stopped" if clean else "killed", f"went on {time.monotonic() - started:.1f} s after it was back")
    finally:
        sent = load.end()
    keep_running(role, lambda: role.committed(EVENTS) == len(read_all(role.settings.kafka, [EVENTS])), 60)
    assert applied(role) == sent


def test_another_cluster_at_the_same_address_is_noticed(node: KafkaNode, role: Role) -> None:
    role.start()
    produce(node.bootstrap, [(EVENTS, e.user_id.encode(), value(e), {}) for e in make_events(300)])
    role.wait(lambda: role.committed(EVENTS) == 300)
    node.replace()
    create_topics(role.settings.kafka)
    events = [replace_event(event, n) for n, event in enumerate(make_events(200))]
    produce(node.bootstrap, [(EVENTS, e.user_id.encode(), value(e), {}) for e in events])
    keep_running(role, lambda: role.committed(EVENTS) == 200, 100)
    assert role.end(signal.SIGTERM) == 0
    folder = role.settings.home / "streams"
    (aside,) = folder.glob("aside-*")
    aside.rename(role.settings.home / "aside")  # `Role.states` reads whatever is in the folder
    assert sum(state.count for state in role.states().values()) == 200
    assert "are put aside in" in role.log.read_text()


def replace_event(event: Event, n: int) -> Event:
    return Event(event.user_id, event.item_id, event.event_time, event.event_type, f"new{n}", n, 0.0)


def test_a_log_lost_under_the_running_role_is_read_from_its_start(node: KafkaNode, role: Role) -> None:
    role.start()
    events = make_events(750)
    produce(node.bootstrap, [(EVENTS, e.user_id.encode(), value(e), {}) for e in events[:400]])
    role.wait(lambda: role.committed(EVENTS) == 400)
    node.stop()
    for log in node.data.glob(f"{EVENTS}-*"):  # a disk is lost; the cluster, its topics and offsets are not
        shutil.rmtree(log)
    node.start()
    produce(node.bootstrap, [(EVENTS, e.user_id.encode(), value(e), {}) for e in events[400:]])
    keep_running(role, lambda: role.committed(EVENTS) == 350, 60)
    assert "before the committed offset" in role.log.read_text()
    assert role.end(signal.SIGTERM) == 0
    assert_equal(role.states(), expected(role, events))


def test_states_outlive_a_changelog_that_lost_its_end(node: KafkaNode, role: Role) -> None:
    events = make_events(600)
    role.start()
    produce(node.bootstrap, [(EVENTS, e.user_id.encode(), value(e), {}) for e in events[:300]])
    role.wait(lambda: role.committed(EVENTS) == 300)
    assert role.end(signal.SIGTERM) == 0
    node.stop()
    for log in node.data.glob(f"{CHANGELOG}-*"):
        shutil.rmtree(log)
    node.start()
    produce(node.bootstrap, [(EVENTS, e.user_id.encode(), value(e), {}) for e in events[300:]])
    role.start()
    role.wait(lambda: role.committed(EVENTS) == 600)
    assert role.end(signal.SIGTERM) == 0
    assert role.log.read_text().count("the broker lost records") == 2
    assert_equal(role.states(), expected(role, events))


def test_markers_at_the_end_of_a_partition_are_no_backlog(node: KafkaNode, role: Role) -> None:
    role.settings = replace(role.settings, watchdog=WatchdogSettings(stall_s=8.0))
    producer = Producer({"bootstrap.servers": node.bootstrap, "transactional.id": "test",
                         "partitioner": "murmur2_random"})
    producer.init_transactions()
    events = make_events(60)
    for turn, start in enumerate(range(0, 60, 10)):
        producer.begin_transaction()
        for event in events[start:start + 10]:
            producer.produce(EVENTS, value(event), event.user_id.encode())
        producer.flush()  # also the records of a transaction that is aborted are on the broker then
        (producer.abort_transaction if turn % 2 else producer.commit_transaction)()
    kept = [event for n, event in enumerate(events) if not n // 10 % 2]
    role.start()
    role.wait_ready()
    time.sleep(16)  # the watchdog asks for ends every 5 s, and waits for 8
    assert role.process is not None
    assert role.process.poll() is None, role.log.read_text()[-3000:]
    assert applied(role) == len(kept)
    role.start()  # what is left of the partitions is markers alone
    role.wait_ready()
    before = role.committed(EVENTS)
    produce(node.bootstrap, [(EVENTS, b"later", value(Event("later", "i1", 1.2e9, "view", "later", 0, 0.0)), {})])
    role.wait(lambda: role.committed(EVENTS) > before, 30)
    assert applied(role) == len(kept) + 1
