"""The broker of the benchmark: Apache Kafka if available, else the embedded one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ingest.systems import ROOT
from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from workers.kafka.configuration import check_reachable
from workers.supervision.broker import HOST, Broker, free_port
from workers.supervision.child import Child

START_S = 60.0


def kafka_home() -> Path | None:
    """Return the folder with a script `start DIR PORT` that runs Apache Kafka; None without one or without Java."""
    for folder in (os.environ.get("KAFKA_HOME"), ROOT.parent / "shared" / "kafka"):
        if folder and (Path(folder) / "start").is_file() and shutil.which("java"):
            return Path(folder).resolve()
    return None


@contextmanager
def running(kind: str, folder: Path) -> Iterator[str]:
    """Start a broker of kind "kafka" or "embedded", yield its address, then stop it.

    Raises:
        FreshetError: it did not answer in time.
    """
    if kind == "embedded":
        broker = Broker(0, folder / "broker.log")
        child = broker.start()
        try:
            yield broker.bootstrap
        finally:
            child.kill()
        return
    home, port = kafka_home(), free_port()
    assert home is not None
    # A random cluster id may begin with "-", which Kafka reads as an option.
    child = Child("kafka", [str(home / "start"), str(folder / "kafka"), str(port)], folder / "broker.log",
                  os.environ | {"KAFKA_CLUSTER_ID": "ZnJlc2hldC10ZXN0LWNsMQ"})
    child.start()
    try:
        _wait(child, f"{HOST}:{port}")
        yield f"{HOST}:{port}"
    finally:
        child.kill()


def _wait(child: Child, bootstrap: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            return check_reachable(KafkaSettings(bootstrap=bootstrap), 2.0)
        except FreshetError:
            if time.monotonic() > deadline or child.exit_code() is not None:
                raise FreshetError(f"Kafka did not answer on {bootstrap}:\n{child.tail()}") from None
