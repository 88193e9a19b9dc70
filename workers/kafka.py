"""Client configurations for the broker, the topics on it, and how far behind a consumer group is."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka import KafkaError as ConfluentError
from confluent_kafka.admin import AdminClient
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.topics import TOPICS, Topic

log = logging.getLogger(__name__)
KNOWLEDGE_GROUP = "freshet-knowledge"
RANKING_GROUP = "freshet-ranking"
GUARD_GROUP = "freshet-guard"


def bootstrap(settings: KafkaSettings) -> str:
    """Return the brokers' addresses.

    Raises:
        FreshetError: none is set.
    """
    if not settings.bootstrap:
        raise FreshetError(
            "no broker: set FRESHET_KAFKA_BOOTSTRAP=host:port, or let `freshet up` start the embedded one")
    return settings.bootstrap


def client(settings: KafkaSettings) -> dict[str, Any]:
    """Return the part of a confluent-kafka configuration that every client shares."""
    config: dict[str, Any] = {
        "bootstrap.servers": bootstrap(settings),
        "security.protocol": settings.security_protocol,
        # A broker that restarts is back within seconds; librdkafka's own back-off grows to 10 s.
        "reconnect.backoff.max.ms": 2000,
        "allow.auto.create.topics": False,
    }
    if settings.security_protocol.startswith("SASL"):
        config |= {
            "sasl.mechanism": settings.sasl_mechanism,
            "sasl.username": settings.sasl_username,
            "sasl.password": settings.sasl_password,
        }
    if settings.ssl_cafile:
        config["ssl.ca.location"] = settings.ssl_cafile
    return config


def consumer(settings: KafkaSettings, group: str, **extra: Any) -> dict[str, Any]:
    """Return the configuration of a consumer of `group` that commits by hand and starts at the oldest record."""
    session_ms = int(settings.session_timeout_s * 1000)
    return client(settings) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": max(100, session_ms // 4),
        # What lies fetched but unread in memory, per process.
        "queued.max.messages.kbytes": 16_384,
        "fetch.wait.max.ms": 50,
    } | extra


def producer(settings: KafkaSettings, **extra: Any) -> dict[str, Any]:
    """Return the configuration of a producer whose records are confirmed by all replicas.

    `murmur2_random` puts a key on the partition where Java, kafka-python and Faust put it; librdkafka's default does
    not. Idempotence keeps the order of a partition through retries; the embedded broker knows it too.
    """
    return client(settings) | {
        "partitioner": "murmur2_random",
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 5,
        "delivery.timeout.ms": 30_000,
        "compression.type": "none",
    } | extra


def check_reachable(settings: KafkaSettings, timeout_s: float = 5.0) -> None:
    """Raise FreshetError if no broker answers within `timeout_s`."""
    admin = AdminClient(client(settings) | {"log_level": 0})
    try:
        admin.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise FreshetError(
            f"no Kafka broker answers at {settings.bootstrap} within {timeout_s:g} s ({error.args[0].str()}); "
            "check FRESHET_KAFKA_BOOTSTRAP and, with security, FRESHET_KAFKA_SASL_*") from error


def create_topics(settings: KafkaSettings, topics: Iterable[Topic] = TOPICS.values(), timeout_s: float = 30.0) -> None:
    """Create the topics that are absent and return when all of them are there.

    Any number of processes may call it at once. A broker that refuses a topic's settings gets it without them.

    Raises:
        FreshetError: the broker does not answer, or a topic cannot be made; the text says which and why.
    """
    wanted = {topic.name: topic for topic in topics}
    check_reachable(settings, min(timeout_s, 10.0))
    absent = [topic for topic in wanted.values() if topic.name not in partitions(settings, wanted)]
    if absent:
        admin = _admin(settings)
        try:
            for topic in absent:
                _create(admin, topic, settings)
        except KafkaError as error:
            raise FreshetError(f"topic {topic.name} cannot be created: {error}") from error
        finally:
            admin.close()
    deadline = time.monotonic() + timeout_s
    while missing := sorted(set(wanted) - set(partitions(settings, wanted))):
        if time.monotonic() > deadline:
            raise FreshetError(f"topics still absent after {timeout_s:g} s: {', '.join(missing)}")
        time.sleep(0.1)


def partitions(settings: KafkaSettings, names: Collection[str]) -> dict[str, int]:
    """Return the number of partitions of those topics that are there and have a leader everywhere."""
    metadata = AdminClient(client(settings)).list_topics(timeout=10.0).topics
    return {
        name: len(topic.partitions) for name, topic in metadata.items()
        if name in names and topic.partitions and all(p.leader >= 0 for p in topic.partitions.values())
    }


def _admin(settings: KafkaSettings) -> KafkaAdminClient:
    config: dict[str, Any] = {
        "bootstrap_servers": bootstrap(settings).split(","), "security_protocol": settings.security_protocol}
    if settings.security_protocol.startswith("SASL"):
        config |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password,
        }
    if settings.ssl_cafile:
        config["ssl_cafile"] = settings.ssl_cafile
    return KafkaAdminClient(**config)


def _create(admin: KafkaAdminClient, topic: Topic, settings: KafkaSettings) -> None:
    count = topic.partitions or settings.partitions
    for config in (topic.config(), {}):
        new = NewTopic(topic.name, count, settings.replication, topic_configs=config)
        try:
            admin.create_topics([new])
            return
        except TopicAlreadyExistsError:
            return
        except KafkaError as error:
            if not config:
                raise
            log.warning("the broker refuses the settings of %s (%s); creating it without them", topic.name, error)


_NO_COORDINATOR_YET = frozenset({
    ConfluentError.NOT_COORDINATOR, ConfluentError.COORDINATOR_NOT_AVAILABLE,
    ConfluentError.COORDINATOR_LOAD_IN_PROGRESS})


class GroupLag:
    """How far a consumer group is behind, asked over one connection that never joins the group."""

    def __init__(self, settings: KafkaSettings, group: str) -> None:
        self._consumer = Consumer(consumer(settings, group) | {"log_level": 2})

    def offsets(self, wanted: Collection[tuple[str, int]], timeout_s: float = 5.0
                ) -> dict[tuple[str, int], tuple[int, int]]:
        """Return (committed, end) per (topic, partition); without a commit the oldest record's offset stands in.

        Raises:
            KafkaException: the broker does not answer.
        """
        asked = [TopicPartition(topic, number) for topic, number in wanted]
        out = {}
        for part in self._committed(asked, timeout_s) if asked else []:
            low, high = self._consumer.get_watermark_offsets(part, timeout=timeout_s)
            out[part.topic, part.partition] = (max(low, part.offset), high)  # no commit is offset −1001
        return out

    def _committed(self, asked: list[TopicPartition], timeout_s: float) -> list[TopicPartition]:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return list(self._consumer.committed(asked, timeout=timeout_s))
            except KafkaException as error:
                # A young or just re-elected broker has no coordinator for the group yet; the client does not ask again.
                if error.args[0].code() not in _NO_COORDINATOR_YET or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


def lag(settings: KafkaSettings, group: str, topics: Collection[str]) -> dict[tuple[str, int], int]:
    """Return per (topic, partition) how many records `group` has not committed yet.

    The embedded broker names the end of a partition as the first record of its last batch + 1, so that the lag there
    comes out short by up to a batch, and 0 while the last batch is half done. Kafka's is exact.

    Raises:
        FreshetError: the broker does not answer.
    """
    reader = GroupLag(settings, group)
    try:
        wanted = [(name, number) for name, n in partitions(settings, topics).items() for number in range(n)]
        return {part: max(0, end - done) for part, (done, end) in reader.offsets(wanted).items()}
    except KafkaException as error:
        raise FreshetError(f"the lag of {group} cannot be read: {error.args[0].str()}") from error
    finally:
        reader.close()
