"""SIGKILL of the knowledge role at three points of a batch: no refresh is lost, and every user has one point."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from schemas.codec import encode
from schemas.messages import KnowledgeRequest
from schemas.settings import QdrantSettings, Settings, to_environ
from schemas.topics import KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES
from tests.faults.dying_worker import POINTS
from tests.faults.proxy import HOST, until
from tests.system.stack import command
from tests.workers.brokers import kill_broker, settings_for, start_broker
from tests.workers.fitted import DIM, publish, settings_in
from workers.kafka.configuration import producer
from workers.kafka.lag import KNOWLEDGE_GROUP, lag
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics
from workers.store.qdrant import QdrantStore
from workers.supervision.broker import free_port
from workers.supervision.child import Child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
USERS = 6  # two passes of the tiny model's batch of four


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a home with a model, the embedded broker, and the store as a process of its own."""
    broker = start_broker("embedded", tmp_path)
    url = f"http://{HOST}:{free_port()}"
    settings = replace(settings_in(tmp_path / "home"), kafka=settings_for(broker),
                       qdrant=QdrantSettings(url=url, api_key="the-key-of-this-test"))
    publish(settings, "m1")
    create_topics(settings.kafka)
    store = Child("store", command("role", "store"), tmp_path / "store.log", os.environ | to_environ(settings))
    store.start()
    try:
        until((settings.home / "run" / "store.ready").exists, 60, store.tail)
        yield settings
    finally:
        store.kill()
        kill_broker(broker)


def ask(settings: Settings, users: list[str], version: int) -> None:
    sender = Producer(producer(settings.kafka))
    for user in users:
        sender.produce(KNOWLEDGE_REQUESTS.name, key=user, value=encode(KnowledgeRequest(
            user_id=user, version=version, reason="cold_start", history=["i1", "i2"], count=2, event_id="e",
            event_time=10.0, caused_at=1.0, requested_at=2.0)))
    assert sender.flush(20) == 0


def announced(settings: Settings) -> Counter[tuple[str, int]]:
    messages = [orjson.loads(record.value()) for record in read_all(settings.kafka, [KNOWLEDGE_UPDATES.name])]
    return Counter((message["user_id"], message["version"]) for message in messages)


def test_killed_at_three_points_of_a_batch(place: Settings, tmp_path: Path) -> None:
    """Each process takes over what the one before it left, gets more, and dies one step later."""
    store = QdrantStore(place.qdrant.url, DIM, place.qdrant)
    environ = os.environ | to_environ(place)
    users = [f"u{n}" for n in range(USERS)]
    for version, point in enumerate(POINTS, start=1):
        ask(place, users, version)
        dying = Child(point, [sys.executable, "-m", "tests.faults.dying_worker", point], tmp_path / f"{point}.log",
                      environ)
        dying.start()
        assert dying.wait(120), dying.tail()
        assert dying.exit_code() == -signal.SIGKILL, dying.tail()
        held, said = store.read(users), announced(place)
        if point == "generated":
            assert (held, said) == ({}, Counter())
        elif point == "stored":
            assert held
            assert not said
        else:
            assert said
        assert lag(place.kafka, KNOWLEDGE_GROUP, [KNOWLEDGE_REQUESTS.name]) != {}
    healthy = Child("knowledge", command("role", "knowledge"), tmp_path / "knowledge.log", environ)
    healthy.start()
    try:
        last = len(POINTS)
        until(lambda: all((user, last) in announced(place) for user in users), 120, healthy.tail)
        until(lambda: not any(lag(place.kafka, KNOWLEDGE_GROUP, [KNOWLEDGE_REQUESTS.name]).values()), 60, healthy.tail)
    finally:
        healthy.kill()
    held = store.read(users)
    assert {user: point.version for user, point in held.items()} == dict.fromkeys(users, last)
    assert store.count() == USERS  # one point a user, however often it was written
    newest: dict[str, int] = {}
    for record in read_all(place.kafka, [KNOWLEDGE_UPDATES.name]):
        update = orjson.loads(record.value())
        assert update["version"] >= newest.get(update["user_id"], 0)
        newest[update["user_id"]] = update["version"]
