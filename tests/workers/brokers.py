"""Real brokers for tests: the embedded one, and Apache Kafka where it is at hand."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from workers.kafka.configuration import check_reachable
from workers.supervision.broker import Broker, free_port
from workers.supervision.child import Child

ROOT = Path(__file__).parents[2]
CLUSTER_ID = "ZnJlc2hldC10ZXN0LWNsMQ"  # any 16 bytes in base64
OTHER_CLUSTER_ID = "ZnJlc2hldC10ZXN0LWNsMg"
# A broker refuses sessions below 6 s by default.
_FAST = ["group.min.session.timeout.ms=1000"]


def kafka_home() -> Path | None:
    """Return the folder with a Kafka `start` script, None if there is none or no Java."""
    for place in (os.environ.get("KAFKA_HOME"), ROOT.parent / "shared" / "kafka"):
        if place and (Path(place) / "start").is_file() and shutil.which("java"):
            return Path(place)
    return None


needs_kafka = pytest.mark.skipif(
    kafka_home() is None, reason="no Apache Kafka here: set KAFKA_HOME to a folder with `start`, and have Java")
BROKERS = ["embedded", pytest.param("kafka", marks=[pytest.mark.kafka, needs_kafka])]  # parameters of a fixture


class KafkaNode:
    """One Apache Kafka node whose data outlives a kill.

    Args:
        properties: of the broker, "key=value", made of its port and of further ones that are free.
    """

    def __init__(
        self, folder: Path, home: Path, properties: Callable[[int, Callable[[], int]], list[str]] | None = None,
    ) -> None:
        self.port = free_port()
        self.data = folder / "kafka" / "data"
        more = properties(self.port, free_port) if properties else []
        command = [str(home / "start"), str(folder / "kafka"), str(self.port), *_FAST, *more]
        # A random cluster id may begin with "-", which Kafka takes for an option: one start in 64 failed.
        environ = os.environ | {"KAFKA_CLUSTER_ID": CLUSTER_ID}
        self._child = Child("kafka", command, folder / "kafka.log", environ)
        try:
            self.start()
        except BaseException:
            self._child.kill()
            raise

    def start(self) -> None:
        self._child.start()
        deadline = time.monotonic() + 60
        while True:
            try:
                check_reachable(KafkaSettings(bootstrap=self.bootstrap), 2.0)
                return
            except FreshetError:
                assert time.monotonic() < deadline, self._child.tail()
                assert self._child.exit_code() is None, self._child.tail()

    def kill(self) -> None:
        self._child.kill()

    def stop(self) -> None:
        """End it in good order."""
        self._child.terminate()
        assert self._child.wait(60), self._child.tail()

    def replace(self) -> None:
        """Put an empty node of another cluster in its place."""
        self.kill()
        shutil.rmtree(self.data)
        self._child.environ["KAFKA_CLUSTER_ID"] = OTHER_CLUSTER_ID
        self.start()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"


def start_broker(kind: str, folder: Path) -> Broker | KafkaNode:
    """Return a running broker, "embedded" or "kafka"."""
    if kind == "kafka":
        home = kafka_home()
        assert home is not None
        for attempt in range(2):  # a port that was free may be taken while Java starts
            try:
                return KafkaNode(folder / f"node{attempt}", home)
            except AssertionError:
                continue
        return KafkaNode(folder / "node", home)
    broker = Broker(0, folder / "broker.log")
    broker.start()
    return broker


def kill_broker(broker: Broker | KafkaNode) -> None:
    """End it at once."""
    if isinstance(broker, KafkaNode):
        broker.kill()
    elif broker.child is not None:
        broker.child.kill()


def settings_for(broker: Broker | KafkaNode) -> KafkaSettings:
    """Return settings with short waits: the embedded broker's first join takes half the session time-out."""
    return KafkaSettings(bootstrap=broker.bootstrap, session_timeout_s=3.0)
