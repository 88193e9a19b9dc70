"""Client configurations for the broker, and whether it answers."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import BrokerUnavailableError, FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client


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
        # Memory for records that are fetched but not read yet, per process.
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
    """Raise BrokerUnavailableError if no broker answers within `timeout_s`."""
    admin = AdminClient(client(settings) | {"log_level": 0})
    try:
        admin.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise BrokerUnavailableError(
            f"no Kafka broker answers at {settings.bootstrap} within {timeout_s:g} s ({error.args[0].str()}); "
            "check FRESHET_KAFKA_BOOTSTRAP and, with security, FRESHET_KAFKA_SASL_*") from error


