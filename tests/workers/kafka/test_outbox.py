"""Messages that are too large for a real broker: dead letters, and the others are sent."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from schemas.messages import AlignmentSample, DeadLetter
from schemas.settings import KafkaSettings
from schemas.topics import ALIGNMENT_SAMPLES, DEAD_LETTERS
from tests.workers.brokers import BROKERS, kill_broker, needs_kafka, settings_for, start_broker
from workers.kafka.configuration import client, consumer
from workers.kafka.outbox import Outbox, Output
from workers.kafka.topics import create_topics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=BROKERS)
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    broker = start_broker(request.param, tmp_path_factory.mktemp("broker"))
    settings = settings_for(broker)
    create_topics(settings)
    yield settings
    kill_broker(broker)


def sample(user: str, size: int) -> Output:
    return Output(ALIGNMENT_SAMPLES, user, AlignmentSample(
        user_id=user, history=["i" * size], item_id="i", margin=-1.0, log_wealth=1.0, knowledge_version=1,
        model_version="m", event_time=1.0))


def read(kafka: KafkaSettings, topic: str, number: int) -> list[bytes]:
    reader = Consumer(consumer(kafka, "test"))
    reader.assign([TopicPartition(topic, part, OFFSET_BEGINNING)
                   for part in reader.list_topics(topic, timeout=10).topics[topic].partitions])
    values: list[bytes] = []
    while len(values) < number:
        message = reader.poll(20)
        assert message is not None, values
        if message.error() is None:
            values.append(message.value())
    reader.close()
    return values


def test_what_no_broker_takes_is_a_dead_letter_and_the_rest_is_sent(kafka: KafkaSettings) -> None:
    outbox = Outbox(kafka, "ranking")
    assert outbox.send([sample("a", 10), sample("b", 3_000_000), sample("c", 10)]) == 2
    outbox.flush()
    assert {AlignmentSample.model_validate_json(value).user_id for value in read(kafka, "alignment-samples", 2)} == {
        "a", "c"}
    letter = DeadLetter.model_validate_json(read(kafka, DEAD_LETTERS.name, 1)[0])
    assert (letter.topic, letter.partition, letter.offset, letter.role) == ("alignment-samples", -1, -1, "ranking")
    assert letter.reason.startswith("cannot be sent: 3000")
    assert base64.b64decode(letter.key or "") == b"b"
    outbox.close()


@pytest.mark.kafka
@needs_kafka
@pytest.mark.parametrize("kafka", ["kafka"], indirect=True)  # the embedded broker has no such limit
def test_a_topic_that_takes_little_refuses_single_records_not_batches(kafka: KafkaSettings) -> None:
    outbox, admin = Outbox(kafka, "ranking"), AdminClient(client(kafka))
    for topic in ("alignment-samples", DEAD_LETTERS.name):
        (done,) = admin.incremental_alter_configs([ConfigResource(
            ConfigResource.Type.TOPIC, topic, incremental_configs=[ConfigEntry(
                "max.message.bytes", "50000", incremental_operation=AlterConfigOpType.SET)])]).values()
        done.result(10)
    before = len(read(kafka, DEAD_LETTERS.name, 1))
    users = [f"u{n}" for n in range(40)]
    assert outbox.send([*[sample(user, 3_000) for user in users], sample("large", 60_000)]) == 40
    outbox.flush()
    letters = [DeadLetter.model_validate_json(value) for value in read(kafka, DEAD_LETTERS.name, before + 1)]
    assert base64.b64decode(letters[-1].key or "") == b"large"
    assert letters[-1].reason.endswith("(cut to what the broker takes)")
    assert set(users) <= {AlignmentSample.model_validate_json(value).user_id
                          for value in read(kafka, "alignment-samples", 42)}
    outbox.close()
