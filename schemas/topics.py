"""The table of all topics. Code that creates, documents or reads a topic uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from schemas.catalogue.item import CatalogueItem
from schemas.catalogue.update import ItemUpdate
from schemas.events import BehaviourEvent
from schemas.messages import (
    AlignmentSample,
    DeadLetter,
    Erasure,
    Judgement,
    KnowledgeRequest,
    KnowledgeUpdate,
    ModelUpdate,
    RankingRequest,
    Recommendation,
    UserSeen,
)

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic.

    Args:
        partitions: None = the `kafka.partitions` setting. All topics that update user states have the same number, so
            that one process gets all records of a user.
        retention_ms: -1 = unlimited.
        tombstones_ms: how long a compacted topic keeps tombstones; None = the broker's setting, one day by default.
    """

    name: str
    model: type[BaseModel]
    key: str
    cleanup: Literal["delete", "compact", "compact,delete"]
    retention_ms: int
    writer: str
    readers: str
    purpose: str
    partitions: int | None = None
    tombstones_ms: int | None = None

    def config(self, min_insync: int = 1) -> dict[str, str]:
        """Return the broker-side settings of the topic.

        The broker's clock stamps the records: with the producer's, a record sent with an old event time as its
        timestamp would be older than the retention when it arrives, and be deleted before it is read.

        Args:
            min_insync: replicas that must have a record before the broker confirms it.
        """
        kept = {} if self.tombstones_ms is None else {"delete.retention.ms": str(self.tombstones_ms)}
        return {"cleanup.policy": self.cleanup, "retention.ms": str(self.retention_ms),
                "message.timestamp.type": "LogAppendTime", "min.insync.replicas": str(min_insync)} | kept


BEHAVIOUR_EVENTS = Topic(
    "behaviour-events", BehaviourEvent, "user_id", "delete", 7 * DAY_MS,
    "producers", "streams", "Users' interactions with items, as they happen.",
)
USER_SEEN = Topic(
    "user-seen", UserSeen, "user_id", "delete", DAY_MS,
    "producers", "streams", "A user is here: recommend, also without an event; with labels to keep to, if wanted.",
)
RANKING_REQUESTS = Topic(
    "ranking-requests", RankingRequest, "user_id", "delete", DAY_MS,
    "streams", "ranking", "A user's state changed: recommend again, judge the new events.",
)
JUDGEMENTS = Topic(
    "judgements", Judgement, "user_id", "delete", DAY_MS,
    "ranking", "streams, guard", "Margins of knowledge over behaviour alone on users' actual events.",
)
KNOWLEDGE_REQUESTS = Topic(
    "knowledge-requests", KnowledgeRequest, "user_id", "compact", -1,
    "streams, ranking", "knowledge", "Users who need new knowledge, with the reason; the newest request per user wins.",
)
KNOWLEDGE_UPDATES = Topic(
    "knowledge-updates", KnowledgeUpdate, "user_id", "compact", -1,
    "knowledge", "streams, consumer services", "A new version of a user's knowledge is in the store.",
)
RECOMMENDATIONS = Topic(
    "recommendations", Recommendation, "user_id", "compact,delete", 7 * DAY_MS,
    "ranking", "consumer services", "The items to show a user now, with the reason.",
)
ALIGNMENT_SAMPLES = Topic(
    "alignment-samples", AlignmentSample, "user_id", "delete", 30 * DAY_MS,
    "streams", "alignment", "Events that contradict the user's knowledge.",
)
MODEL_UPDATES = Topic(
    "model-updates", ModelUpdate, "model_version", "compact", -1,
    "alignment, guard, operators", "knowledge, ranking, alignment, guard", "A model version came into use.",
    partitions=1,
)
# Its tombstones stay: an item of the fitted model that a shop removed would come back with the next start.
CATALOGUE = Topic(
    "catalogue", CatalogueItem, "item_id", "compact", -1,
    "producers", "knowledge, ranking", "Items that are new, changed or not available; a tombstone removes an item.",
    partitions=1, tombstones_ms=100 * 365 * DAY_MS,
)
ITEM_UPDATES = Topic(
    "item-updates", ItemUpdate, "item_id", "compact", -1,
    "knowledge", "ranking, streams", "What is known of a new or changed item is in the store.", partitions=1,
)
ERASURES = Topic(
    "erasures", Erasure, "user_id", "delete", 7 * DAY_MS,
    "`freshet forget`, other services", "streams", "Users whose data is to be removed.",
)
DEAD_LETTERS = Topic(
    "dead-letters", DeadLetter, "topic", "delete", 30 * DAY_MS,
    "all roles", "operators", "Unusable records, with the reason and the original bytes.", partitions=1,
)

# Faust's name for the table of user states of the application freshet-streams.
CHANGELOG = "freshet-streams-user-state-changelog"

TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        BEHAVIOUR_EVENTS, USER_SEEN, RANKING_REQUESTS, JUDGEMENTS, KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES,
        RECOMMENDATIONS, ALIGNMENT_SAMPLES, MODEL_UPDATES, CATALOGUE, ITEM_UPDATES, ERASURES, DEAD_LETTERS,
    )
}

# Topics keyed by user. A process that owns a partition number owns it in all of them.
KEYED_BY_USER = (*(topic.name for topic in TOPICS.values() if topic.partitions is None), CHANGELOG)


def to_grow(found: Mapping[str, int], partitions: int) -> dict[str, int]:
    """Return the topics that may be given more partitions, with their numbers: a producer came first.

    Once there are user states it is too late, since they stay in the partition in which they were made.

    Args:
        found, partitions: as in `misfits`.
    """
    wrong = {name: found[name] for name in KEYED_BY_USER if found.get(name, partitions) != partitions}
    return wrong if CHANGELOG not in found and all(number < partitions for number in wrong.values()) else {}


def misfits(found: Mapping[str, int], partitions: int, full: Callable[[str], str] = str) -> str:
    """Return what is wrong with the numbers of partitions, "" = nothing.

    Args:
        found: topic → its number of partitions, of those that are there.
        partitions: the setting.
        full: returns how a topic is called on the servers.
    """
    wrong = {name: found[name] for name in KEYED_BY_USER if found.get(name, partitions) != partitions}
    if not wrong:
        return ""
    text = ", ".join(f"{full(name)} has {number}" for name, number in wrong.items())
    if to_grow(found, partitions):
        return (f"a producer came first, and the broker made {text} where FRESHET_KAFKA_PARTITIONS={partitions}; "
                "`freshet topics --create` adds the missing partitions, and what was sent stays")
    present = {found[name] for name in KEYED_BY_USER if name in found}
    if len(present) == 1:
        cure = (f"set FRESHET_KAFKA_PARTITIONS={present.pop()}, or create the topics again (all of them: user states "
                "stay in the partition in which they were made)")
    else:
        cure = ("all topics keyed by user must have the same number, because one process must get everything of a "
                "user; delete the wrong ones and create them again with `freshet topics --create`")
        if CHANGELOG in wrong:
            cure += f" ({full(CHANGELOG)} holds the user states, streams creates it)"
    return f"topics with another number of partitions than FRESHET_KAFKA_PARTITIONS={partitions}: {text}; {cure}"


def shortcomings(topic: Topic, found: Mapping[str, str], min_insync: int = 1) -> dict[str, tuple[str, str]]:
    """Return which broker-side settings of an existing topic do harm: name → (the wanted value, the harm).

    Retention is the operator's to choose. Settings that the broker does not report are taken as right.

    Args:
        found: settings of the topic by name.
    """
    wanted = topic.config(min_insync)
    harm = {}
    if found.get("message.timestamp.type", "LogAppendTime") != "LogAppendTime":
        harm["message.timestamp.type"] = "records with old timestamps may be deleted before they are read"
    policies = set(found.get("cleanup.policy", topic.cleanup).replace(" ", "").split(","))
    if policies != set(topic.cleanup.split(",")):
        harm["cleanup.policy"] = "the newest record of a key may be deleted" if "compact" in topic.cleanup else \
            "records that are not read yet may be dropped for newer ones of their key"
    if topic.tombstones_ms is not None and int(
            found.get("delete.retention.ms", topic.tombstones_ms)) < topic.tombstones_ms:
        harm["delete.retention.ms"] = "what was removed comes back once its tombstone is dropped"
    if int(found.get("min.insync.replicas", min_insync)) < min_insync:
        harm["min.insync.replicas"] = "a confirmed record may be on one broker only, and lost with it"
    return {name: (wanted[name], why) for name, why in harm.items()}
