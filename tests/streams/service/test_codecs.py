"""Both consumers, Faust's (aiokafka) and the workers' (librdkafka), read every codec a producer may choose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka import Consumer, Producer

from schemas.settings import KafkaSettings
from schemas.topics import BEHAVIOUR_EVENTS
from tests.workers.brokers import BROKERS, kill_broker, start_broker
from workers.kafka.topics import create_topics

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
VALUES = [b'{"user_id": "7", "item_id": "%d"}' % n * 20 for n in range(200)]  # long and alike, so that it is compressed


@pytest.fixture(params=BROKERS, scope="module")
def bootstrap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    broker = start_broker(request.param, tmp_path_factory.mktemp("broker"))
    create_topics(KafkaSettings(bootstrap=broker.bootstrap, partitions=len(CODECS)))
    for partition, codec in enumerate(CODECS):
        producer = Producer({"bootstrap.servers": broker.bootstrap, "compression.type": codec, "linger.ms": 50})
        for value in VALUES:
            producer.produce(BEHAVIOUR_EVENTS.name, value, partition=partition)
        assert producer.flush(20) == 0
    yield broker.bootstrap
    kill_broker(broker)


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_streams_reads_every_codec(bootstrap: str, codec: str) -> None:
    async def read() -> list[bytes]:
        from aiokafka import TopicPartition

        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign([TopicPartition(BEHAVIOUR_EVENTS.name, CODECS.index(codec))])
            async with asyncio.timeout(20):
                return [(await consumer.getone()).value for _ in VALUES]
        finally:
            await consumer.stop()

    assert asyncio.run(read()) == VALUES


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_workers_read_every_codec(bootstrap: str, codec: str) -> None:
    from confluent_kafka import TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "codecs", "enable.auto.commit": False})
    consumer.assign([TopicPartition(BEHAVIOUR_EVENTS.name, CODECS.index(codec), 0)])
    try:
        found = []
        while len(found) < len(VALUES):
            message = consumer.poll(20)
            assert message is not None
            assert message.error() is None
            found.append(message.value())
        assert found == VALUES
    finally:
        consumer.close()
