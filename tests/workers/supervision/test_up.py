"""`freshet up` itself, with the guard as its only role: brokers that are away, roles that fail, ends asked for."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import orjson
import pytest
from confluent_kafka import Producer

from schemas.codec import encode
from schemas.endings import FULL_EXIT
from schemas.settings import KafkaSettings
from schemas.topics import JUDGEMENTS
from tests.workers.brokers import ROOT
from tests.workers.roles.test_guard import judgements, publish
from workers.home.crashes import CrashLog
from workers.home.stack_info import Running, find
from workers.kafka.configuration import producer
from workers.supervision.broker import Broker, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Up:
    """`freshet up --roles guard` against a broker at a port of its own."""

    def __init__(self, folder: Path, bootstrap: str, **environ: str) -> None:
        self.home = folder / "home"
        if not (self.home / "models").is_dir():
            publish(self.home, "v1")
        self.output = folder / "up.txt"
        plain = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
        self.environ = plain | {
            "FRESHET_HOME": str(self.home), "FRESHET_KAFKA_BOOTSTRAP": bootstrap, "OMP_NUM_THREADS": "1",
            "FRESHET_KAFKA_SESSION_TIMEOUT_S": "3", "FRESHET_HEALTH_PORT": str(free_port())} | environ
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workers.cli", "up", "--roles", "guard"], cwd=ROOT, stdout=out, stderr=out,
                env=self.environ)

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def running(self) -> Running | None:
        return find(self.home)

    @property
    def ready(self) -> bool:
        return bool(self.running and self.running.ready and self.running.processes["guard"].ready)

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command on the same home."""
        return subprocess.run([sys.executable, "-m", "workers.cli", *arguments], cwd=ROOT, env=self.environ,
                              capture_output=True, text=True, check=False, timeout=60)

    def healthz(self) -> tuple[int, str]:
        """Return the status and the state that /healthz answers."""
        try:
            answer = urlopen(f"http://127.0.0.1:{self.environ['FRESHET_HEALTH_PORT']}/healthz", timeout=10)
        except HTTPError as error:
            return error.code, orjson.loads(error.read())["state"]
        with answer:
            return answer.status, orjson.loads(answer.read())["state"]

    def end(self, seconds: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@pytest.fixture
def started() -> Iterator[list[Up]]:
    those: list[Up] = []
    yield those
    for one in those:
        one.process.kill()  # its children die with it
        one.process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    one = Broker(free_port(), tmp_path / "broker.log")
    yield one
    if one.child is not None:
        one.child.kill()


def test_a_broker_that_is_away_is_waited_for(tmp_path: Path, started: list[Up], broker: Broker) -> None:
    """It ended with exit code 1 at the start, and 98 s after the broker went away."""
    up = Up(tmp_path, broker.bootstrap)
    started.append(up)
    up.wait(lambda: "waiting for the broker" in up.text)
    up.wait(lambda: up.running is not None and up.running.waits_for == "broker")
    assert up.healthz() == (503, "waiting")
    health = up.run("health")
    assert (health.returncode, health.stdout) == (4, "waiting: waiting for the broker\n")
    broker.start()
    up.wait(lambda: up.ready)
    assert up.healthz() == (200, "ok")
    assert broker.child is not None
    broker.child.kill()
    up.wait(lambda: up.healthz() == (503, "waiting"))  # the role itself says so: it has not ended
    assert "guard: waiting (waiting for the broker)" in up.run("health", "--verbose").stdout
    assert up.running is not None
    os.kill(up.running.pids["guard"], signal.SIGKILL)
    up.wait(lambda: up.running is not None and up.running.processes["guard"].waits_for == "broker")
    assert "guard waits for the broker" in up.text
    assert up.healthz() == (503, "waiting")
    broker.start()
    up.wait(lambda: up.ready)
    assert up.running is not None
    assert up.running.processes["guard"].failures == 0
    assert CrashLog(up.home).read() == {}
    assert up.end() == 0


def test_sigterm_while_waiting_for_the_broker(tmp_path: Path, started: list[Up], broker: Broker) -> None:
    up = Up(tmp_path, broker.bootstrap)
    started.append(up)
    up.wait(lambda: "waiting for the broker" in up.text)
    began = time.monotonic()
    assert up.end() == 0
    assert time.monotonic() - began < 8
    assert up.running is None


def test_a_role_that_fails_again_and_again_ends_it_with_its_last_error(
    tmp_path: Path, started: list[Up], broker: Broker,
) -> None:
    broker.start()
    up = Up(tmp_path, broker.bootstrap, FRESHET_WATCHDOG_FAILURES="3")
    (up.home / "guard" / "evidence.msgpack").mkdir(parents=True)  # unreadable: an error nobody foresaw
    started.append(up)
    assert up.process.wait(60) == 1
    last = up.text.splitlines()[-1]
    assert last.startswith("freshet: guard failed 3 times in a row, the last: IsADirectoryError")
    assert up.text.count("Starting it again") == 2
    assert "Traceback" not in up.text
    (crashes,) = CrashLog(up.home).read().values()
    assert [crash.code for crash in crashes] == [1, 1, 1]
    doctor = up.run("doctor")
    assert doctor.returncode == 1
    assert "crashed 3 times in a row" in " ".join(doctor.stdout.split())
    assert "IsADirectoryError" in (up.home / "run" / "guard.log").read_text()


def test_what_another_start_cannot_help_ends_it_at_once(tmp_path: Path, started: list[Up], broker: Broker) -> None:
    broker.start()
    publish(tmp_path / "home", "v1")
    for path in (tmp_path / "home" / "models" / "v1").glob("*.json"):
        path.write_text("{}")
    up = Up(tmp_path, broker.bootstrap)
    started.append(up)
    assert up.process.wait(60) == 1
    assert up.text.splitlines()[-1].startswith("freshet: guard ended while starting:")


def test_a_role_that_hangs_is_killed_in_bounded_time(tmp_path: Path, started: list[Up], broker: Broker) -> None:
    broker.start()
    up = Up(tmp_path, broker.bootstrap)
    started.append(up)
    up.wait(lambda: up.ready)
    assert up.running is not None
    guard = up.running.pids["guard"]
    assert up.run("health").returncode == 0
    os.kill(guard, signal.SIGSTOP)
    up.wait(lambda: up.healthz() == (503, "hung"))
    health = up.run("health", "--verbose")
    assert health.returncode == 1
    assert "guard: hung (has written nothing for" in health.stdout
    assert up.end() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(guard, 0)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux only")
def test_a_full_disk_ends_a_role_that_needs_it_with_a_line_that_says_so(
    tmp_path: Path, started: list[Up], broker: Broker,
) -> None:
    """A file size limit of 0 stands for the full disk: the guard can write neither its evidence nor why it ends."""
    broker.start()
    up = Up(tmp_path, broker.bootstrap, FRESHET_WATCHDOG_FAILURES="1", FRESHET_LOG_TO="stderr")
    started.append(up)
    up.wait(lambda: up.ready)
    assert not (up.home / "run" / "guard.log").exists()
    assert "watching model v1" in up.text  # as containers want it
    assert up.running is not None
    resource.prlimit(up.running.pids["guard"], resource.RLIMIT_FSIZE, (0, 0))
    sender = Producer(producer(KafkaSettings(bootstrap=broker.bootstrap)))
    for judgement in judgements("v1", 0.1):
        sender.produce(JUDGEMENTS.name, encode(judgement), key=judgement.user_id)
    assert sender.flush(20) == 0
    assert up.process.wait(60) == 1
    last = up.text.splitlines()[-1]
    assert last.startswith("freshet: guard failed 1 times in a row, the last: ")
    assert "the disk is full" in last
    assert "Traceback" not in up.text


def test_a_full_disk_at_the_start_is_one_line(tmp_path: Path) -> None:
    publish(tmp_path, "v1")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "up"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        env=environ | {"FRESHET_HOME": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert done.returncode == FULL_EXIT
    assert done.stderr.startswith("freshet: the disk is full")
    assert "Traceback" not in done.stderr
