"""One run of one system, in a new process with a new group and state folder, observed from outside.

The time runs from the first event (recorded by the meter) until the group's committed offsets, polled every 50 ms,
cover all events, because only committed work survives a crash. Every system commits once per second, so the last commit
can be up to a second late for all systems. Bytewax commits no offsets; the meter's count marks its end. CPU time is the
user and system time of the process tree over the same span, without the broker's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks.ingest.systems import ROOT, IngestSystem, python_of

POLL_S = 0.05
STALL_S = 60.0


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings common to all runs.

    Args:
        core: CPU core of the measured process; None = all cores.
        target: number of events in the topic; slow systems run only `prefix` of them.
    """

    bootstrap: str
    topic: str
    partitions: int
    vectors: Path
    folder: Path
    sample: list[str]
    commit_s: float
    target: int
    prefix: int
    core: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of one run; `states` are those of the sampled users, in the common form."""

    events: int
    seconds: float
    cpu_seconds: float
    rss_bytes: int
    states: dict[str, dict[str, Any]]


class RunError(Exception):
    """A system stopped, stalled, or did not do the complete job."""


def measure(system: IngestSystem, setting: Setting, progress: Callable[[int], None]) -> Run:
    """Run a system until it has processed its events, and return the figures.

    Raises:
        RunError: it ended or stalled before that; the text includes the end of its log.
    """
    group = f"bench-{system.name}-{uuid.uuid4().hex[:8]}"
    folder = setting.folder / group
    folder.mkdir(parents=True)
    (folder / "sample.json").write_text(json.dumps(setting.sample))
    environ = os.environ | {
        "PYTHONPATH": str(ROOT), "BENCH_BOOTSTRAP": setting.bootstrap, "BENCH_TOPIC": setting.topic,
        "BENCH_GROUP": group, "BENCH_FOLDER": str(folder), "BENCH_VECTORS": str(setting.vectors),
        "BENCH_PARTITIONS": str(setting.partitions), "BENCH_COMMIT_S": str(setting.commit_s),
        # Single events give BLAS nothing to parallelise; idle threads would only spin.
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environ = {name: value for name, value in environ.items() if not name.startswith("FRESHET_")}
    if setting.core is not None:
        environ["BENCH_CORE"] = str(setting.core)
    arguments = ["worker", "-l", "warn", "--without-web"] if system.name == "faust" else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(python_of(system)), "-m", system.module, *arguments], cwd=folder, env=environ, stdout=log,
            stderr=log, stdin=subprocess.DEVNULL)
    try:
        return _watch(system, setting, group, folder, process, progress)
    finally:
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _watch(
    system: IngestSystem, setting: Setting, group: str, folder: Path, process: subprocess.Popen[bytes],
    progress: Callable[[int], None],
) -> Run:
    target = setting.prefix if system.prefix else setting.target
    partitions = [TopicPartition(setting.topic, n) for n in range(setting.partitions)]
    consumer = Consumer({"bootstrap.servers": setting.bootstrap, "group.id": group, "enable.auto.commit": False})
    child = psutil.Process(process.pid)
    seen, moved = 0, time.monotonic()
    try:
        while True:
            time.sleep(POLL_S)
            figures = _read(folder / "progress.json")
            if process.poll() is not None:
                raise RunError(f"{system.title} ended with {process.returncode}:\n{_tail(folder)}")
            if figures.get("events", 0) > seen:
                seen, moved = figures["events"], time.monotonic()
                progress(seen)
            if figures.get("first") is not None:
                if system.commits:
                    done, now = _committed(consumer, partitions), time.time()
                else:
                    done, now = figures["events"], figures["time"]
                if done >= target:
                    cpu, rss = _usage(child)
                    break
            if time.monotonic() - moved > STALL_S:
                raise RunError(f"{system.title} stalled at {seen} events:\n{_tail(folder)}")
    finally:
        consumer.close()
    if figures["invalid"]:
        raise RunError(f"{system.title} rejected {figures['invalid']} valid events")
    started, started_cpu = figures["first"]
    (folder / "dump").touch()
    deadline = time.monotonic() + 30
    while not (folder / "states.json").exists():
        if time.monotonic() > deadline:
            raise RunError(f"{system.title} did not write its states:\n{_tail(folder)}")
        time.sleep(POLL_S)
    states = json.loads((folder / "states.json").read_text())
    return Run(done, now - started, cpu - started_cpu, rss, states)


def _committed(consumer: Consumer, partitions: list[TopicPartition]) -> int:
    try:
        return sum(max(0, tp.offset) for tp in consumer.committed(partitions, timeout=10))
    except KafkaException:
        return 0  # the group's coordinator is not ready


def _usage(child: psutil.Process) -> tuple[float, int]:
    """Return CPU seconds and resident bytes of the process and its children."""
    tree = [child, *child.children(recursive=True)]
    cpu = sum(times.user + times.system for times in (process.cpu_times() for process in tree))
    return cpu, sum(process.memory_info().rss for process in tree)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def _tail(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")[-3_000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
