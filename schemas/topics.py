"""The table of all topics. Code that creates, documents or reads a topic uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from schemas.events import BehaviourEvent
from schemas.messages import (
    AlignmentSample,
    DeadLetter,
    Judgement,
    KnowledgeRequest,
    KnowledgeUpdate,
    ModelUpdate,
    RankingRequest,
    Recommendation,
)

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic.

    Args:
        partitions: None = the `kafka.partitions` setting. All topics that update user states have the same number, so
            that one process gets all records of a user.
        retention_ms: -1 = unlimited.
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

    def config(self) -> dict[str, str]:
        """Return the broker-side settings of the topic."""
        return {"cleanup.policy": self.cleanup, "retention.ms": str(self.retention_ms)}


BEHAVIOUR_EVENTS = Topic(
    "behaviour-events", BehaviourEvent, "user_id", "delete", 7 * DAY_MS,
    "producers", "streams", "Users' interactions with items, as they happen.",
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
    "streams", "knowledge", "Users who need new knowledge, with the reason; the newest request per user wins.",
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
    "alignment, guard, operators", "knowledge, ranking, streams", "A model version to load.", partitions=1,
)
DEAD_LETTERS = Topic(
    "dead-letters", DeadLetter, "topic", "delete", 30 * DAY_MS,
    "all roles", "operators", "Unusable records, with the reason and the original bytes.", partitions=1,
)

TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        BEHAVIOUR_EVENTS, RANKING_REQUESTS, JUDGEMENTS, KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES,
        RECOMMENDATIONS, ALIGNMENT_SAMPLES, MODEL_UPDATES, DEAD_LETTERS,
    )
}
