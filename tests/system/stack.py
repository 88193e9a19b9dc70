"""A complete stack under test: the real processes on a real broker, observed through its topics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, Producer

from schemas.settings import KafkaSettings
from streams.profile.state import UserState, loads
from workers.home.stack_info import Running, find
from workers.kafka.reader import read_all

CHANGELOG = "freshet-streams-user-state-changelog"
START_S = 120


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "workers.cli", *arguments]


class Stack:
    """`freshet up` on a home with fitted models, with the embedded broker or the given one.

    Clients use confluent-kafka with its defaults, like services outside the project.
    """

    def __init__(self, home: Path, bootstrap: str = "", **environ: str) -> None:
        self.home = home
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
        # The minimum of Apache Kafka is 6 s; on the embedded broker the first join takes half the timeout.
        session = "6" if bootstrap else "3"
        self.environ |= {"FRESHET_HOME": str(home), "FRESHET_KAFKA_SESSION_TIMEOUT_S": session, "OMP_NUM_THREADS": "1"}
        self.environ["FRESHET_CONSOLE_PORT"] = "0"  # tests run side by side, and only a few look at it
        if bootstrap:
            self.environ["FRESHET_KAFKA_BOOTSTRAP"] = bootstrap
        self.environ |= environ
        self.log = home / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stack:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command("up"), env=self.environ, stdout=out, stderr=out)
        wait_for(lambda: self.running is not None and self.running.ready, START_S, self.log_tails, alive=self.process)
        return self

    def __exit__(self, *_: Any) -> None:
        assert self.process is not None
        pids = dict(self.running.pids) if self.running else {}
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
        left = [name for name, pid in pids.items() if alive(pid)]
        assert not left, f"still running after Ctrl-C: {left}"

    @property
    def running(self) -> Running | None:
        return find(self.home)

    @property
    def kafka(self) -> KafkaSettings:
        assert self.running is not None, self.log_tails()
        return KafkaSettings(bootstrap=self.running.bootstrap, prefix=self.running.prefix)

    def kill(self, role: str) -> None:
        """Kill one role's process with SIGKILL, as in a crash."""
        assert self.running is not None
        os.kill(self.running.pids[role], signal.SIGKILL)

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run another `freshet` command while the stack runs."""
        return subprocess.run(command(*arguments), env=self.environ, input=stdin, capture_output=True, text=True,
                              timeout=60, check=False)

    def produce(self, events: list[dict[str, Any] | bytes | None], *, keyed: bool = True) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap, "log_level": 0})
        failed: list[Any] = []
        for event in events:
            value = orjson.dumps(event) if isinstance(event, dict) else event
            key = event["user_id"].encode() if keyed and isinstance(event, dict) else None
            producer.produce(self.kafka.full("behaviour-events"), value, key=key,
                             on_delivery=lambda error, _: failed.append(error) if error else None)
            producer.poll(0)
        producer.flush(30)
        assert not failed

    def records(self, topic: str) -> list[dict[str, Any]]:
        """Return all messages of a topic so far."""
        return [orjson.loads(message.value()) for message in read_all(self.kafka, [topic])]

    def answered(self) -> dict[str, int]:
        """Return per user the highest number of events that a recommendation covers."""
        out: dict[str, int] = {}
        for message in self.records("recommendations"):
            out[message["user_id"]] = max(out.get(message["user_id"], 0), message["count"])
        return out

    def states(self) -> dict[str, UserState]:
        """Return the user states from the changelog."""
        newest = {m.key().decode(): m.value() for m in read_all(self.kafka, [CHANGELOG])}
        return {user: loads(value) for user, value in newest.items() if value}  # None = erased

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        wait_for(condition, seconds, self.log_tails, alive=self.process)

    def log_tails(self) -> str:
        """Return the ends of all logs, for failure messages."""
        logs = [self.log, *sorted((self.home / "run").glob("*.log"))]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs if path.exists())


def wait_for(
    condition: Callable[[], bool], seconds: float, logs: Callable[[], str],
    alive: subprocess.Popen[bytes] | None = None,
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert alive is None or alive.poll() is None, f"the stack ended\n{logs()}"
        assert time.monotonic() < deadline, f"not within {seconds} s\n{logs()}"
        time.sleep(0.25)


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def plain_consumer(bootstrap: str, group: str) -> Consumer:
    return Consumer({
        "bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "log_level": 0})
