"""Topics on real brokers: what is created with which settings, and what a refusal says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.topics import BEHAVIOUR_EVENTS, RECOMMENDATIONS, TOPICS, Topic
from tests.workers.brokers import BROKERS, kill_broker, needs_kafka, settings_for, start_broker
from workers.kafka.configuration import client
from workers.kafka.topics import create_topics, partitions

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

    def test_a_topic_that_cannot_be_created_is_an_error_with_its_name(self, settings: KafkaSettings) -> None:
        with pytest.raises(FreshetError, match=r"topic alone cannot be created: .*replicat"):
            create_topics(replace(settings, replication=3), [replace(BEHAVIOUR_EVENTS, name="alone")])
