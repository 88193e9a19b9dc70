"""Topics: created, and their partitions counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from typing import Any

from confluent_kafka.admin import AdminClient
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.topics import TOPICS, Topic
from workers.kafka.configuration import bootstrap, check_reachable, client

log = logging.getLogger(__name__)


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
