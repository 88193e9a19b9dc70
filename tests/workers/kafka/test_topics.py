"""Topics on real brokers: what is created with which settings, and what a refusal says."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client
from schemas.topics import BEHAVIOUR_EVENTS, KEYED_BY_USER, RECOMMENDATIONS, TOPICS, Topic
from tests.workers.brokers import BROKERS, kill_broker, needs_kafka, settings_for, start_broker
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics, partitions, weaknesses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=BROKERS)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    broker = start_broker(request.param, tmp_path_factory.mktemp("broker"))
    yield settings_for(broker)
    kill_broker(broker)


def configuration(settings: KafkaSettings, topic: str) -> dict[str, str]:
    admin = AdminClient(client(settings) | {"log_level": 0})  # named: without it, the request would end with the client
    (described,) = admin.describe_configs([ConfigResource("topic", topic)]).values()
    return {name: entry.value for name, entry in described.result(10).items()}


def test_topics_have_their_partitions_and_settings_however_often_they_are_created(settings: KafkaSettings) -> None:
    create_topics(settings)
    create_topics(settings)
    assert partitions(settings, TOPICS) == {
        name: topic.partitions or settings.partitions for name, topic in TOPICS.items()}
    for topic in (BEHAVIOUR_EVENTS, RECOMMENDATIONS):
        assert topic.config().items() <= configuration(settings, topic.name).items()
    assert weaknesses(settings, list(TOPICS.values())) == []


@pytest.mark.parametrize("name", [name for name in KEYED_BY_USER if name != "behaviour-events"])
def test_a_topic_keyed_by_user_with_another_number_of_partitions_is_refused(settings: KafkaSettings, name: str) -> None:
    topic = TOPICS.get(name, replace(BEHAVIOUR_EVENTS, name=name))
    admin = AdminClient(client(settings) | {"log_level": 0})
    clear(admin)
    topic_partitions = settings.partitions + 2
    create_topics(settings, [replace(topic, partitions=topic_partitions)])
    with pytest.raises(FreshetError, match=rf"PARTITIONS={settings.partitions}: {name} has {topic_partitions}; set"):
        create_topics(settings)
    clear(admin)


@pytest.mark.kafka
@needs_kafka
@pytest.mark.parametrize("settings", ["kafka"], indirect=True)  # the embedded one is never there before Freshet
def test_a_topic_that_a_producer_made_is_given_its_partitions_and_keeps_its_records(settings: KafkaSettings) -> None:
    admin = AdminClient(client(settings) | {"log_level": 0})
    clear(admin)
    admin.create_topics([NewTopic("behaviour-events", 1)])["behaviour-events"].result(10)
    producer = Producer(client(settings))
    for number in range(5):
        producer.produce("behaviour-events", str(number).encode())
    assert producer.flush(10) == 0
    with pytest.raises(FreshetError, match=r"a producer came first.*behaviour-events has 1.*`freshet topics --create`"):
        create_topics(settings)
    create_topics(settings, grow=True)
    assert partitions(settings, KEYED_BY_USER) == {
        name: settings.partitions for name in KEYED_BY_USER if name in TOPICS}
    kept = sorted(record.value() for record in read_all(settings, ["behaviour-events"]))
    assert kept == [b"0", b"1", b"2", b"3", b"4"]
    clear(admin)


def clear(admin: AdminClient) -> None:
    """Delete all topics and wait until they are gone."""
    there = [name for name in KEYED_BY_USER if name in admin.list_topics(timeout=10).topics]
    for deleted in (admin.delete_topics(there) if there else {}).values():
        deleted.result(10)
    deadline = time.monotonic() + 20
    while set(there) & set(admin.list_topics(timeout=10).topics):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.kafka
@needs_kafka
@pytest.mark.parametrize("settings", ["kafka"], indirect=True)
class TestRefusals:  # the embedded broker takes any setting and any replication
    def test_a_topic_whose_settings_are_refused_is_created_without_them(
        self, settings: KafkaSettings, caplog: pytest.LogCaptureFixture,
    ) -> None:
        odd: Topic = replace(BEHAVIOUR_EVENTS, name="odd", cleanup="nonsense")  # type: ignore[arg-type]
        sound = replace(BEHAVIOUR_EVENTS, name="sound", cleanup="compact")
        with caplog.at_level(logging.WARNING):
            create_topics(settings, [odd, sound])
        assert [record.args[0] for record in caplog.records if record.args] == ["odd"]
        assert configuration(settings, "odd")["cleanup.policy"] == "delete"
        assert configuration(settings, "sound")["cleanup.policy"] == "compact"

    def test_what_is_wrong_with_an_existing_topic_is_said_and_left_alone(
        self, settings: KafkaSettings, caplog: pytest.LogCaptureFixture,
    ) -> None:
        admin = AdminClient(client(settings) | {"log_level": 0})
        clear(admin)
        admin.create_topics([NewTopic("behaviour-events", settings.partitions, config={
            "message.timestamp.type": "CreateTime"})])["behaviour-events"].result(10)
        stricter = replace(settings, replication=3)  # the topic has one replica, and so min.insync.replicas=1
        with caplog.at_level(logging.WARNING):
            create_topics(stricter, [BEHAVIOUR_EVENTS])
        text = caplog.text
        assert "behaviour-events has message.timestamp.type=CreateTime: records with old timestamps may be" in text
        assert "--entity-name behaviour-events --add-config message.timestamp.type=LogAppendTime" in text
        assert "behaviour-events has min.insync.replicas=1: a confirmed record may be on one broker only" in text
        assert configuration(settings, "behaviour-events")["message.timestamp.type"] == "CreateTime"
        clear(admin)

    def test_an_event_with_an_old_timestamp_outlives_the_retention(self, settings: KafkaSettings) -> None:
        create_topics(settings)
        producer = Producer(client(settings))
        for timestamp in (1_000, 10**12):  # milliseconds: 1970 and 2001; the topic keeps 7 days
            producer.produce("behaviour-events", b"{}", timestamp=timestamp)
        assert producer.flush(10) == 0
        for record in read_all(settings, ["behaviour-events"]):
            assert abs(record.timestamp()[1] / 1000 - time.time()) < 60

    def test_a_topic_that_cannot_be_created_is_an_error_with_its_name(self, settings: KafkaSettings) -> None:
        with pytest.raises(FreshetError, match=r"topic alone cannot be created: .*replicat"):
            create_topics(replace(settings, replication=3), [replace(BEHAVIOUR_EVENTS, name="alone")])

    def test_more_replicas_in_sync_than_there_are_is_refused(self, settings: KafkaSettings) -> None:
        with pytest.raises(FreshetError, match="MIN_INSYNC_REPLICAS=2 is more than FRESHET_KAFKA_REPLICATION=1"):
            create_topics(replace(settings, min_insync_replicas=2))
