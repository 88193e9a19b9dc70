"""Records of confluent-kafka's serializers through the whole role, with a registry that is away at first."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from schemas.liveness import counters_file
from schemas.messages import DeadLetter
from schemas.settings import RegistrySettings
from schemas.topics import BEHAVIOUR_EVENTS
from tests.registry import RegistryStub, registry
from tests.schemas.reading.schemas import EVENT, NOON_UTC, event_message
from tests.streams.service.test_app import Role
from tests.workers.brokers import kill_broker, start_broker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CONTEXT = SerializationContext(BEHAVIOUR_EVENTS.name, MessageField.VALUE)


@pytest.fixture
def stub() -> Iterator[RegistryStub]:
    with registry() as running:
        yield running


@pytest.fixture
def role(stub: RegistryStub, tmp_path: Path) -> Iterator[Role]:
    broker = start_broker("embedded", tmp_path)
    yield on(broker.bootstrap, tmp_path / "home", stub)
    kill_broker(broker)


def on(bootstrap: str, home: Path, stub: RegistryStub) -> Role:
    made = Role(bootstrap, home)
    made.settings = replace(made.settings, registry=RegistrySettings(
        url=stub.url, username="key", password="secret"))  # noqa: S106
    return made


def progress(role: Role) -> dict[str, Any]:
    return orjson.loads(counters_file(role.settings.home, "streams").read_bytes())


def written(stub: RegistryStub) -> list[bytes]:
    """Two events in Avro, two in Protobuf, a plain one; one of a schema that nobody has, one of other bytes."""
    client = SchemaRegistryClient({"url": stub.url, "basic.auth.user.info": "key:secret"})
    avro, protobuf = AvroSerializer(client, json.dumps(EVENT)), ProtobufSerializer(type(event_message()), client)
    events = [avro({"user_id": f"a{n}", "item_id": 7, "event_time": NOON_UTC, "event_type": "view"}, CONTEXT)
              for n in range(2)]
    events += [protobuf(event_message(user_id=f"p{n}"), CONTEXT) for n in range(2)]
    return [*events, orjson.dumps({"user_id": "j", "item_id": "7", "event_time": 1e9}),
            b"\x00\x00\x00\x00\x63oops", events[0][:8]]


def send(role: Role, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": role.settings.kafka.bootstrap})
    for value in values:
        producer.produce(BEHAVIOUR_EVENTS.name, value, partition=0)  # all wait behind the first; streams sends them on
    assert producer.flush(20) == 0


USERS = {"a0", "a1", "p0", "p1", "j"}


def test_events_wait_for_a_registry_that_is_away_and_only_bad_ones_are_buried(role: Role, stub: RegistryStub) -> None:
    stub.user = "key:secret"
    values = written(stub)
    stub.fault = (500, b"")
    role.start()
    role.wait_ready()
    send(role, values)
    role.wait(lambda: progress(role)["waits_for"] == "schema registry")
    assert progress(role)["processed"] == 0
    stub.fault = None
    role.wait(lambda: progress(role).get("events") == 5 and progress(role)["dead_letters"] == 2)
    assert progress(role)["waits_for"] == ""
    role.end(signal.SIGTERM)
    letters = [orjson.loads(value) for value in role.read("dead-letters")]
    reasons = sorted(DeadLetter.model_validate(letter).reason for letter in letters)
    assert reasons[0].startswith("not of its schema 1: Avro")
    assert reasons[1].startswith("the schema registry has no schema 99 to use: Schema 99 not found")
    states = role.states()
    assert set(states) == USERS
    assert all(state.items == ["7"] for state in states.values())
    assert "secret" not in role.log.read_text()


def test_a_rebalance_does_not_wait_for_the_registry(role: Role, stub: RegistryStub, tmp_path: Path) -> None:
    values = written(stub)
    stub.fault = (500, b"")
    role.start()
    role.wait_ready()
    send(role, values)
    role.wait(lambda: progress(role)["waits_for"] == "schema registry")
    other = on(role.settings.kafka.bootstrap, tmp_path / "other", stub)
    other.start()
    other.wait_ready()
    stub.fault = None
    # A role without a batch so far has no such counter; a batch that changes hands may bury its letters again.
    role.wait(lambda: sum(progress(one).get("events", 0) for one in (role, other)) == 5)
    role.wait(lambda: sum(progress(one)["dead_letters"] for one in (role, other)) >= 2)
    assert [one.end(signal.SIGTERM) for one in (role, other)] == [0, 0]
    assert set(role.states()) | set(other.states()) == USERS
