"""Client configurations for the broker, and whether it answers."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import BrokerUnavailableError, FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client

_PATIENCE_S = 1.0  # a broker that refuses the client answers within milliseconds, and the client asks again and again


def consumer(settings: KafkaSettings, group: str, **extra: Any) -> dict[str, Any]:
    """Return the configuration of a consumer that commits by hand and starts at the oldest record.

    Args:
        group: its plain name.
    """
    session_ms = int(settings.session_timeout_s * 1000)
    return client(settings) | {
        "group.id": settings.full(group),
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
    """Raise BrokerUnavailableError if no broker answers within `timeout_s`, FreshetError if it refuses this client."""
    errors: list[KafkaError] = []
    admin = AdminClient(client(settings) | {"log_level": 0, "error_cb": errors.append})
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        try:
            admin.list_topics(timeout=max(0.01, min(left, _PATIENCE_S)))
            return
        except KafkaException as error:
            admin.poll(0)  # hands out what the client noted; its own error says "no answer", whatever the cause
            if why := refusal(settings, errors):
                raise FreshetError(why) from error
            if left <= _PATIENCE_S:
                raise BrokerUnavailableError(
                    f"no Kafka broker answers at {settings.bootstrap} within {timeout_s:g} s ({error.args[0].str()}); "
                    "check FRESHET_KAFKA_BOOTSTRAP, and FRESHET_KAFKA_SECURITY_PROTOCOL, which is "
                    f"{settings.security_protocol}") from error
            time.sleep(min(0.1, left))  # the client gives up at once where it has just seen every broker down


def refusal(settings: KafkaSettings, errors: Sequence[KafkaError]) -> str:
    """Return why client and broker do not trust each other and what to do, "" if the broker may only be away.

    A connection that ends in the middle says nothing: a broker that stops, or a proxy before it, ends it so too.

    Args:
        errors: as handed to a client's `error_cb`.
    """
    for error in errors:
        # Without the connection's name before it, how long it took, and the client's advice in its own settings' names.
        text = re.sub(r"(: broker certificate.*)? \(after \d+ms in state \w+\)$", "", error.str()).split(": ", 1)[-1]
        if "isconnect" in text:
            continue
        if error.code() == KafkaError._AUTHENTICATION:
            return (f"{settings.bootstrap} refuses user {settings.sasl_username!r} by {settings.sasl_mechanism} "
                    f"({text}); check FRESHET_KAFKA_SASL_USERNAME, _MECHANISM and _PASSWORD_FILE")
        if "tls alert" in text:  # the broker's word on this client's certificate
            return (f"{settings.bootstrap} refuses this client's TLS certificate ({text}); "
                    + (f"it does not trust the one in {settings.ssl_certfile}" if settings.ssl_certfile else
                       "it asks for one: set FRESHET_KAFKA_SSL_CERTFILE and FRESHET_KAFKA_SSL_KEYFILE"))
        if error.code() == KafkaError._SSL:
            return (f"the certificate of {settings.bootstrap} is not trusted ({text}); set FRESHET_KAFKA_SSL_CAFILE "
                    "to a file with its CA, and use the host name that is in the certificate")
    return ""
