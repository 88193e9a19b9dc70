"""Which cluster this is: its id, and the id and the partitions of each topic."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.errors import BrokerUnavailableError, FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client
from schemas.topics import CHANGELOG, KEYED_BY_USER, misfits
from streams.service.origin import Origin
from streams.service.stage import SOURCES

_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # what a broker that knows no topic ids answers: 16 zero bytes in base64


@dataclass(frozen=True, slots=True)
class Identity:
    """A cluster and the topics asked for that are there.

    Args:
        cluster_id: "" = the broker tells none.
        topics: plain name → topic id, "" = the broker tells none (Kafka before 2.8). A topic created again gets
            another one.
        partitions: plain name → number of partitions.
        prefix: that Freshet's names begin with there.
    """

    cluster_id: str = ""
    topics: Mapping[str, str] = field(default_factory=dict)
    partitions: Mapping[str, int] = field(default_factory=dict)
    prefix: str = ""

    @property
    def origin(self) -> Origin:
        """The cluster and its changelog."""
        return Origin(self.cluster_id, self.topics.get(CHANGELOG), self.prefix)


class Cluster:
    """One connection that asks which cluster it is connected to."""

    def __init__(self, settings: KafkaSettings, timeout_s: float = 30.0) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._admin = AdminClient(client(settings) | {"log_level": 2})

    def checked(self) -> Identity:
        """Return who answers, and the topics keyed by user.

        Raises:
            FreshetError: as `identify`; or a topic is not there or has another number of partitions than the setting.
        """
        found = self.identify(KEYED_BY_USER)
        full = self._settings.full
        if absent := [full(name) for name in SOURCES if name not in found.topics]:
            raise FreshetError(f"not at {self._settings.bootstrap}: {', '.join(absent)}; `freshet topics --create` "
                               "creates the topics")
        if text := misfits(found.partitions, self._settings.partitions, full):
            raise FreshetError(text)
        return found

    def identify(self, names: Collection[str]) -> Identity:
        """Return who answers, and which of the topics `names` are there.

        Raises:
            BrokerUnavailableError: no broker answers within the time.
            FreshetError: it does not let this user describe the topics.
        """
        cluster_id, topics, partitions = "", {}, {}
        try:
            cluster_id = self._admin.list_topics(timeout=self._timeout_s).cluster_id or ""
            asked = self._admin.describe_topics(TopicCollection([
                self._settings.full(name) for name in names]), request_timeout=self._timeout_s)
            for full, answer in asked.items():
                name = self._settings.plain(full)
                try:
                    found = answer.result(self._timeout_s)
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                        topics[name] = ""  # not this role's to look at, such as the recommendations
                    elif error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
                    continue
                topics[name] = "" if str(found.topic_id) == _NO_ID else str(found.topic_id)
                partitions[name] = len(found.partitions)
        except KafkaException as error:
            away = error.args[0].code() < 0  # the client's own code: nobody answered
            raise (BrokerUnavailableError if away else FreshetError)(
                f"the cluster at {self._settings.bootstrap} cannot be asked for its topics "
                f"({error.args[0].str()})") from error
        return Identity(cluster_id, topics, partitions, self._settings.prefix)
