"""Consumer groups and how far they are behind."""

from __future__ import annotations

from collections.abc import Collection

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from workers.kafka.configuration import consumer
from workers.kafka.topics import partitions

STREAMS_GROUP = "freshet-streams"  # a literal: importing it from streams would load Faust
KNOWLEDGE_GROUP = "freshet-knowledge"
RANKING_GROUP = "freshet-ranking"
GUARD_GROUP = "freshet-guard"
CATALOGUE_GROUP = "freshet-catalogue"


def _no_coordinator_yet(error: BaseException) -> bool:
    """Return whether a young or just re-elected broker has no coordinator for the group; the client does not ask again.

    The client's administration gives up just as soon, measured on Apache Kafka 4.2.
    """
    return isinstance(error, KafkaException) and error.args[0].code() in {
        KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS}


class GroupLag:
    """How far a consumer group is behind, asked over one connection that never joins the group.

    Args:
        group: its plain name; topics are asked for and named by plain names, too.
    """

    def __init__(self, settings: KafkaSettings, group: str) -> None:
        self._settings = settings
        self._consumer = Consumer(consumer(settings, group) | {"log_level": 2})

    def offsets(self, wanted: Collection[tuple[str, int]], timeout_s: float = 5.0
                ) -> dict[tuple[str, int], tuple[int, int]]:
        """Return (committed, end) per (topic, partition); without a commit the oldest record's offset stands in.

        Raises:
            KafkaException: the broker does not answer.
        """
        asked = [TopicPartition(self._settings.full(topic), number) for topic, number in wanted]
        out = {}
        for part in self._committed(asked, timeout_s) if asked else []:
            low, high = self._consumer.get_watermark_offsets(part, timeout=timeout_s)
            # No commit is offset −1001.
            out[self._settings.plain(part.topic), part.partition] = (max(low, part.offset), high)
        return out

    def ping(self, timeout_s: float = 5.0) -> None:
        """Return when the broker answers.

        Raises:
            KafkaException: it does not.
        """
        self._consumer.list_topics(timeout=timeout_s)

    def _committed(self, asked: list[TopicPartition], timeout_s: float) -> list[TopicPartition]:
        tries = Retrying(retry=retry_if_exception(_no_coordinator_yet), wait=wait_fixed(0.1),
                         stop=stop_after_delay(timeout_s), reraise=True)
        return list(tries(self._consumer.committed, asked, timeout=timeout_s))

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


def lag(settings: KafkaSettings, group: str, topics: Collection[str]) -> dict[tuple[str, int], int]:
    """Return per (topic, partition) how many records `group` has not committed yet.

    The embedded broker lists the end of a partition as the first record of its last batch + 1. The lag there is too
    small by up to a batch, and 0 while the last batch is half done. Kafka's is exact.

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
