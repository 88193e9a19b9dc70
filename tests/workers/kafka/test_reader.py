"""Reading topics from the side: everything that is there at the call, whatever is written meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client
from schemas.topics import BEHAVIOUR_EVENTS
from streams.service.outbox import partition_of
from tests.workers.brokers import BROKERS, kill_broker, needs_kafka, settings_for, start_broker
from workers.kafka.configuration import producer
from workers.kafka.reader import TopicReader, read_all, watermarks
from workers.kafka.topics import create_topics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
TOPIC = BEHAVIOUR_EVENTS.name


@pytest.fixture(params=BROKERS)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    broker = start_broker(request.param, tmp_path_factory.mktemp("broker"))
    settings = settings_for(broker)
    create_topics(settings, [BEHAVIOUR_EVENTS])
    yield settings
    kill_broker(broker)


def produce(settings: KafkaSettings, values: range, key: bytes) -> None:
    """Send the values in one batch."""
    sender = Producer(producer(settings))
    for value in values:
        sender.produce(TOPIC, str(value), key=key)
    assert sender.flush(20) == 0


def test_all_records_of_all_batches_are_read(settings: KafkaSettings) -> None:
    produce(settings, range(100), b"ann")
    produce(settings, range(100, 107), b"ann")  # the embedded broker lists the end of the partition as 101
    produce(settings, range(200, 205), b"eve")
    ann, eve = (partition_of(key, settings.partitions) for key in (b"ann", b"eve"))
    assert ann != eve
    assert {int(m.value()) for m in read_all(settings, [TOPIC])} == {*range(107), *range(200, 205)}
    assert [int(m.value()) for m in read_all(settings, [TOPIC], key=b"ann")] == list(range(107))
    assert [int(m.value()) for m in read_all(settings, [TOPIC], key=b"ann", last=5)] == list(range(102, 107))
    marks = watermarks(settings, [TOPIC, "absent"])
    assert {n: mark for n, mark in enumerate(marks[TOPIC]) if mark != (0, 0)} == {ann: (0, 107), eve: (0, 5)}
    assert marks.keys() == {TOPIC}


def test_a_reader_starts_at_the_next_new_record(settings: KafkaSettings) -> None:
    produce(settings, range(10), b"ann")
    with TopicReader(settings, [TOPIC]) as fresh, TopicReader(settings, [TOPIC], from_beginning=True) as whole:
        produce(settings, range(10, 13), b"ann")
        seen: dict[TopicReader, list[int]] = {fresh: [], whole: []}
        deadline = time.monotonic() + 30
        while 12 not in seen[fresh] or 12 not in seen[whole]:
            assert time.monotonic() < deadline
            for reader, values in seen.items():
                values += [int(m.value()) for m in reader.poll(0.1)]
    assert seen == {fresh: [10, 11, 12], whole: list(range(13))}


def test_reading_ends_while_others_write_without_a_pause(settings: KafkaSettings) -> None:
    produce(settings, range(50), b"ann")
    done = threading.Event()

    def write() -> None:
        sender = Producer(producer(settings))
        while not done.wait(0.002):
            sender.produce(TOPIC, b"1000", key=b"ann")
            sender.poll(0)
        sender.flush(20)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(1.0)
        assert {int(m.value()) for m in read_all(settings, [TOPIC], within_s=10.0)} == {*range(50), 1000}
    finally:
        done.set()
        writer.join()


@pytest.mark.kafka
@needs_kafka
@pytest.mark.parametrize("settings", ["kafka"], indirect=True)
def test_a_partition_that_ends_with_the_marker_of_a_transaction_is_read_to_its_end(settings: KafkaSettings) -> None:
    sender = Producer(client(settings) | {"transactional.id": "t", "partitioner": "murmur2_random"})
    sender.init_transactions(30)
    sender.begin_transaction()
    sender.produce(TOPIC, b"7", key=b"ann")
    sender.commit_transaction(30)
    started = time.monotonic()
    assert [m.value() for m in read_all(settings, [TOPIC], within_s=10.0)] == [b"7"]
    assert time.monotonic() - started < 5.0  # no wait for a record that never comes
