"""The settings of the broker in the terms of librdkafka, for the workers and for the changelog of streams."""

from __future__ import annotations

import logging
from typing import Any

from schemas.errors import FreshetError
from schemas.settings.connection import check_connection, key_file, uses_sasl
from schemas.settings.kafka import KafkaSettings


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
    """Return the part of a confluent-kafka configuration that every client shares.

    Raises:
        FreshetError: no broker is set, or its security settings cannot be used.
    """
    check_connection(settings)
    config: dict[str, Any] = {
        "bootstrap.servers": bootstrap(settings),
        "security.protocol": settings.security_protocol,
        # A broker that restarts is back within seconds; librdkafka's own back-off grows to 10 s.
        "reconnect.backoff.max.ms": 2000,
        "allow.auto.create.topics": False,
        # Its own lines on stderr are neither JSON nor masked; these come out when the client is polled.
        "logger": logging.getLogger("librdkafka"),
    }
    if uses_sasl(settings):
        config |= {
            "sasl.mechanism": settings.sasl_mechanism,
            "sasl.username": settings.sasl_username,
            "sasl.password": settings.sasl_password,
        }
    if settings.ssl_cafile:
        config["ssl.ca.location"] = settings.ssl_cafile
    if settings.ssl_certfile:
        config |= {"ssl.certificate.location": settings.ssl_certfile, "ssl.key.location": key_file(settings)}
    if settings.ssl_key_password:
        config["ssl.key.password"] = settings.ssl_key_password
    return config
