"""Topics: created, and their partitions counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client
from schemas.topics import CHANGELOG, TOPICS, Topic, misfits, shortcomings, to_grow
from workers.kafka.configuration import check_reachable

log = logging.getLogger(__name__)


def create_topics(
    settings: KafkaSettings, topics: Iterable[Topic] = TOPICS.values(), timeout_s: float = 30.0, *, grow: bool = False,
) -> None:
    """Create the topics that are absent and return when all of them are there.

    Any number of processes may call it at once. A broker that refuses a topic's settings gets it without them. Topics
    that are there already are not altered; what is wrong with their settings is logged.

    Args:
        grow: give topics that a producer's first record made the partitions they lack, as long as there are no states.

    Raises:
        FreshetError: the broker does not answer, a topic cannot be created, or one has another number of partitions
            than the setting; the text says which and why.
    """
    wanted = {topic.name: topic for topic in topics}
    if settings.min_insync > settings.replication:
        raise FreshetError(f"FRESHET_KAFKA_MIN_INSYNC_REPLICAS={settings.min_insync} is more than "
                           f"FRESHET_KAFKA_REPLICATION={settings.replication}: no record could ever be written")
    check_reachable(settings, min(timeout_s, 10.0))
    admin = AdminClient(client(settings))
    there = _with_leaders(admin, settings, {*wanted, CHANGELOG})
    if grow and (small := to_grow(there, settings.partitions)):
        _grow(admin, settings, small, timeout_s)
        there = _with_leaders(admin, settings, {*wanted, CHANGELOG})
    if text := misfits(there, settings.partitions, settings.full):
        raise FreshetError(text)
    for warning in weaknesses(settings, [topic for name, topic in wanted.items() if name in there], admin):
        log.warning("%s", warning)
    refused = _create(admin, settings, [topic for topic in wanted.values() if topic.name not in there])
    for name, error in refused.items():
        log.warning("the broker refuses the settings of %s (%s); creating it without them", settings.full(name),
                    error.str())
    for name, error in _create(admin, settings, [wanted[name] for name in refused], configured=False).items():
        raise FreshetError(f"topic {settings.full(name)} cannot be created: {error.str()}")
    deadline = time.monotonic() + timeout_s
    # Right after the broker has confirmed nine new topics, Apache Kafka 4.2 listed none of them.
    while missing := sorted(set(wanted) - set(_with_leaders(admin, settings, wanted))):
        if time.monotonic() > deadline:
            raise FreshetError(f"topics still absent after {timeout_s:g} s: "
                               f"{', '.join(map(settings.full, missing))}")
        time.sleep(0.1)


def _grow(admin: AdminClient, settings: KafkaSettings, small: Mapping[str, int], timeout_s: float) -> None:
    partitions, had = settings.partitions, {settings.full(name): number for name, number in small.items()}
    for name, grown in admin.create_partitions([NewPartitions(name, partitions) for name in had]).items():
        try:
            grown.result(timeout_s)
        except KafkaException as error:
            raise FreshetError(
                f"{name} has {had[name]} partitions and cannot be given {partitions} ({error.args[0].str()}); delete "
                "it and run `freshet topics --create` again, or keep to its number: "
                f"FRESHET_KAFKA_PARTITIONS={had[name]}") from error
        log.warning("%s had %d partitions and has %d now", name, had[name], partitions)
    deadline = time.monotonic() + timeout_s
    while set(_with_leaders(admin, settings, small).values()) != {partitions} and time.monotonic() < deadline:
        time.sleep(0.1)


def partitions(settings: KafkaSettings, names: Collection[str]) -> dict[str, int]:
    """Return the number of partitions of those topics that are there and have a leader everywhere."""
    return _with_leaders(AdminClient(client(settings)), settings, names)


def keeping_times(settings: KafkaSettings, names: Collection[str]) -> dict[str, float | None]:
    """Return for how many seconds at most topics keep a record, by plain name; None = for ever, or not known.

    A broker deletes whole segments, so a record may stay for the time of a segment longer.
    """
    admin = AdminClient(client(settings))
    asked = admin.describe_configs([ConfigResource("topic", settings.full(name)) for name in names]) if names else {}
    out: dict[str, float | None] = {}
    for resource, answer in asked.items():
        name = settings.plain(resource.name)
        try:
            found = {key: entry.value for key, entry in answer.result(10.0).items()}
            retention, segment = int(found["retention.ms"]), int(found.get("segment.ms") or 0)
        except (KafkaException, KeyError, TypeError, ValueError):
            topic = TOPICS.get(name)
            retention, segment = topic.retention_ms if topic else -1, 0
        out[name] = (retention + max(0, segment)) / 1000.0 if retention >= 0 else None
    return out


def weaknesses(settings: KafkaSettings, topics: Sequence[Topic], admin: AdminClient | None = None) -> list[str]:
    """Return a sentence for each broker-side setting of existing topics that does harm, with what to do.

    Topics whose settings this user may not see are left out.
    """
    admin = admin or AdminClient(client(settings))
    by_name = {settings.full(topic.name): topic for topic in topics}
    asked = admin.describe_configs([ConfigResource("topic", name) for name in by_name]) if topics else {}
    out = []
    for resource, answer in asked.items():
        try:
            found = {name: entry.value for name, entry in answer.result(10.0).items()}
        except KafkaException as error:
            log.info("the settings of topic %s cannot be read: %s", resource.name, error.args[0].str())
            continue
        out += [f"topic {resource.name} has {name}={found[name]}: {why}; set it with kafka-configs --bootstrap-server "
                f"{settings.bootstrap} --alter --entity-type topics --entity-name {resource.name} --add-config "
                f"{name}={wanted if ',' not in wanted else f'[{wanted}]'}"
                for name, (wanted, why) in shortcomings(by_name[resource.name], found, settings.min_insync).items()]
    return out


def _with_leaders(admin: AdminClient, settings: KafkaSettings, names: Collection[str]) -> dict[str, int]:
    found = admin.list_topics(timeout=10.0).topics
    there = {name: found[settings.full(name)] for name in names if settings.full(name) in found}
    return {name: len(topic.partitions) for name, topic in there.items()
            if topic.partitions and all(p.leader >= 0 for p in topic.partitions.values())}


def _create(
    admin: AdminClient, settings: KafkaSettings, topics: Sequence[Topic], *, configured: bool = True,
) -> dict[str, KafkaError]:
    """Create topics and return, per topic that the broker refuses, its reason."""
    new = [NewTopic(settings.full(topic.name), topic.partitions or settings.partitions, settings.replication,
                    config=topic.config(settings.min_insync) if configured else {}) for topic in topics]
    refused = {}
    for name, created in (admin.create_topics(new) if new else {}).items():
        try:
            created.result()
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.code() < 0:  # the client's own: no answer. Trying without settings would lose the compaction.
                raise FreshetError(f"topic {name} cannot be created: {reason.str()}") from error
            if reason.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                refused[settings.plain(name)] = reason
    return refused
