"""The settings of the broker, and the names of what Freshet has there and in Qdrant."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from schemas.settings.sections import STRICT


@dataclass(frozen=True, config=STRICT)
class KafkaSettings:
    """The broker."""

    bootstrap: str = Field(default="", description="host:port,… of a Kafka cluster; empty = the embedded broker")
    port: int = Field(default=0, ge=0, le=65535, description="port of the embedded broker; 0 = any free one")
    prefix: str = Field(
        default="", max_length=100, pattern=r"^[A-Za-z0-9._-]*$",
        description="begins the name of every topic, consumer group, transactional id and Qdrant collection, such as "
                    "`shop-`, so that several Freshets share one cluster and one Qdrant; empty = plain names")
    partitions: int = Field(default=4, ge=1, le=1024, description="partitions of every topic keyed by user")
    replication: int = Field(default=1, ge=1, description="replicas of each topic")
    min_insync_replicas: int | None = Field(
        default=None, ge=1, description="replicas that must have a record before it counts as written; at most as many "
                                        "as `replication`; None = 2 of 3 or more, else 1")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to talk to the brokers")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="used with SASL_*")
    sasl_username: str = Field(default="", description="used with SASL_*")
    sasl_password: str = Field(
        default="", repr=False,
        description="used with SASL_*; never logged; `FRESHET_KAFKA_SASL_PASSWORD_FILE` names a file that holds it")
    ssl_cafile: str = Field(
        default="", description="used with *SSL: file of CA certificates to trust (PEM); empty = the system's")
    ssl_certfile: str = Field(
        default="", description="used with *SSL: file of the client's certificate and its chain (PEM), for mutual TLS")
    ssl_keyfile: str = Field(
        default="", description="file of the client's private key (PEM); empty = in the certificate's file")
    ssl_key_password: str = Field(
        default="", repr=False,
        description="opens the client's key; never logged; `FRESHET_KAFKA_SSL_KEY_PASSWORD_FILE` names a file that "
                    "holds it")
    session_timeout_s: float = Field(
        default=10.0, gt=0, description="a consumer that is silent for this long loses its place in the group")

    def full(self, name: str) -> str:
        """Return how a topic, consumer group, transactional id or collection is called on the servers.

        The one place that says so. Code, metrics and `freshet` commands use the plain name.
        """
        return self.prefix + name

    def plain(self, name: str) -> str:
        """Return the plain name of what is called `name` on the servers; another Freshet's name stays as it is."""
        return name.removeprefix(self.prefix)

    @property
    def min_insync(self) -> int:
        """Replicas that must have a record before it counts as written."""
        if self.min_insync_replicas is not None:
            return self.min_insync_replicas
        return 2 if self.replication >= 3 else 1
