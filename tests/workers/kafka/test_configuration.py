from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client
from schemas.topics import BEHAVIOUR_EVENTS
from tests.certificates import KEY_PASSWORD, make
from tests.workers.brokers import BROKERS, kill_broker, settings_for, start_broker
from workers.kafka.configuration import check_reachable, consumer, producer
from workers.kafka.lag import lag
from workers.kafka.topics import create_topics


class TestConfigurations:
    def test_without_a_broker_it_says_what_to_set(self) -> None:
        with pytest.raises(FreshetError, match="FRESHET_KAFKA_BOOTSTRAP"):
            client(KafkaSettings())

    def test_security_goes_into_every_client(self, tmp_path: Path) -> None:
        files = make(tmp_path)
        settings = KafkaSettings(
            bootstrap="a:1", security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-256", sasl_username="me",
            sasl_password="secret", ssl_cafile=str(files.ca), ssl_certfile=str(files.client),  # noqa: S106
            ssl_keyfile=str(files.encrypted_key), ssl_key_password=KEY_PASSWORD)
        for config in (client(settings), consumer(settings, "g"), producer(settings)):
            assert config["security.protocol"] == "SASL_SSL"
            assert (config["sasl.mechanism"], config["sasl.username"]) == ("SCRAM-SHA-256", "me")
            assert config["ssl.ca.location"] == str(files.ca)
            assert config["ssl.certificate.location"] == str(files.client)
            assert (config["ssl.key.location"], config["ssl.key.password"]) == (str(files.encrypted_key), KEY_PASSWORD)
            AdminClient(client(settings) | {"log_level": 0})  # it reads the files
        assert "secret" not in repr(settings)
        assert KEY_PASSWORD not in repr(settings)

    def test_the_clients_take_their_configurations(self) -> None:
        settings = KafkaSettings(bootstrap="127.0.0.1:9")
        Consumer(consumer(settings, "g") | {"log_level": 0}).close()
        Producer(producer(settings) | {"log_level": 0})

    def test_nobody_there_is_said_quickly(self) -> None:
        started = time.monotonic()
        with pytest.raises(FreshetError, match="no Kafka broker answers"):
            check_reachable(KafkaSettings(bootstrap="127.0.0.1:9"), 1.0)
        assert time.monotonic() - started < 5


@pytest.mark.slow
class TestBroker:
    @pytest.fixture(params=BROKERS)
    def settings(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KafkaSettings]:
        broker = start_broker(request.param, tmp_path)
        yield settings_for(broker)
        kill_broker(broker)

    def test_lag_is_counted(self, settings: KafkaSettings) -> None:
        create_topics(settings)
        assert set(lag(settings, "nobody", [BEHAVIOUR_EVENTS.name]).values()) == {0}
        sender = Producer(producer(settings))
        sender.produce(BEHAVIOUR_EVENTS.name, b"x", key="ann")
        assert sender.flush(10) == 0
        assert sum(lag(settings, "nobody", [BEHAVIOUR_EVENTS.name]).values()) == 1

    def test_equal_keys_meet_in_the_partition_other_clients_choose(self, settings: KafkaSettings) -> None:
        from kafka.partitioner.default import murmur2

        create_topics(settings)
        placed: dict[bytes, int] = {}
        sender = Producer(producer(settings))
        for i in range(200):
            sender.produce(BEHAVIOUR_EVENTS.name, b"x", key=f"user-{i}",
                           on_delivery=lambda _, m: placed.__setitem__(m.key(), m.partition()))
        assert sender.flush(10) == 0
        assert placed == {key: (murmur2(key) & 0x7FFFFFFF) % settings.partitions for key in placed}
        assert len(placed) == 200
