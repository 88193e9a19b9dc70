"""Long runs on two instances of every role and Apache Kafka: `python -m tests.faults.endurance KIND`.

- `soak`: half the maximum rate for 30 minutes, with a role killed at random about once a minute.
- `kill-loop`: ten minutes of the schedule of Faust's `tests/stress/killer.py`, its three parts in turn: SIGTERM or
  SIGINT every 1 to 30 s, SIGTERM every 5 to 100 s, SIGKILL every 0.1 to 1 s.
- `pressure`: ten times the maximum rate for 5 minutes, without kills.

All of them measure the maximum rate first, print a line every ten seconds, wait until everything is done, ask the
oracle, and write a report to `runs/`. Exit code 1: something was lost, doubled, stuck, or memory grew without bound.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import psutil

from tests.faults.actions import Actor
from tests.faults.cluster import ROLES, Cluster
from tests.faults.oracle import repeated, unfinished, violations
from tests.faults.proxy import until
from workers.training.revision import revision

USERS = 2000
TICK_S = 0.1
LINE_S = 10.0
LOOK_S = 5.0  # how often topics are read and memory is sampled
# Resident memory may grow by this much an hour after the first third of a run, in MB: a leak of one state a second is
# 70 MB an hour, and allocators settle within it.
SLOPE_MB_PER_HOUR = 200.0
# What a role may take at all under pressure, beyond what it had before, in MB: fetch buffers (16 MB a partition and
# consumer), two batches, and 16,384 states of 20 kB.
GROWTH_MB = 700.0


def gaps(
    kind: str, seconds: float, rng: random.Random, clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[float, int]]:
    """Yield (seconds to wait, signal) for a run of `seconds`."""
    if kind == "soak":
        while True:
            yield rng.uniform(30, 90), signal.SIGKILL
    if kind == "kill-loop":
        started = clock()
        while True:
            part = 3 * (clock() - started) / seconds % 3
            if part < 1:
                yield rng.uniform(1, 30), rng.choice([signal.SIGTERM, signal.SIGINT])
            elif part < 2:
                yield rng.uniform(5, 100), signal.SIGTERM
            else:
                for _ in range(30):
                    yield rng.uniform(0.1, 1.0), signal.SIGKILL
                yield rng.uniform(20, 40), signal.SIGKILL


def slope(samples: list[tuple[float, float]]) -> float:
    """Return the growth of (seconds, MB) samples in MB an hour, after the first third; 0 for fewer than ten."""
    late = samples[len(samples) // 3:]
    if len(late) < 10:
        return 0.0
    times, values = np.array(late).T
    return float(np.polyfit(times / 3600, values, 1)[0])


@dataclass
class Memory:
    """Resident memory of every process of a role, in MB. A restart begins a new series."""

    series: defaultdict[tuple[str, int], list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list))
    peak: Counter[str] = field(default_factory=Counter)

    def sample(self, cluster: Cluster, now: float) -> None:
        for instance in cluster.instances:
            running = instance.running
            for role, pid in (running.pids if running else {}).items():
                with contextlib.suppress(psutil.Error):
                    mb = psutil.Process(pid).memory_info().rss / 2**20
                    self.series[f"{role} {instance.name}", pid].append((now, mb))
                    self.peak[role] = max(self.peak[role], round(mb))

    def slopes(self) -> dict[str, float]:
        """Return per role and instance the slope of the longest series, if it is of 5 minutes at least."""
        out = {}
        for (name, _), samples in sorted(self.series.items(), key=lambda entry: len(entry[1])):
            if samples[-1][0] - samples[0][0] >= 300:
                out[name] = round(slope(samples), 1)
        return out


class Flow(threading.Thread):
    """Sends events at a steady rate until told to stop."""

    def __init__(self, cluster: Cluster, rate: float, users: int) -> None:
        super().__init__(daemon=True, name="flow")
        self._users = users
        self.sent = 0
        self._cluster = cluster
        self._rate = rate
        self._ended = threading.Event()
        self._rng = random.Random(1)

    def run(self) -> None:
        work = self._cluster.workload
        due, last = 0.0, time.monotonic()
        while not self._ended.wait(TICK_S):
            now = time.monotonic()
            due += self._rate * min(1.0, now - last)  # what a busy second could not send is not caught up later
            last = now
            number = int(due)
            due -= number
            each = max(1, number // self._users)
            names = [f"u{n}" for n in self._rng.sample(range(self._users), min(self._users, number // each))]
            events = work.events(names, each)
            work.send(events)
            self.sent += len(events)
        work.flush()

    def stop(self) -> None:
        self._ended.set()
        self.join(180)


def measure(cluster: Cluster, events: int, users: int) -> float:
    """Return the events per second that get from producers to recommendations, of a backlog of `events`.

    Knowledge may come later: how much of it is made is the price's decision, not the rate's.
    """
    work = cluster.workload
    batch = work.events([f"u{n}" for n in range(users)], max(1, events // users))
    started = time.monotonic()
    work.send(batch)
    work.flush()

    def answered() -> bool:
        cluster.observe()
        return not unfinished(cluster.book, cluster.ledger)

    until(answered, 300, cluster.logs)
    return len(batch) / (time.monotonic() - started)


@dataclass
class Run:
    """One long run and its report."""

    kind: str
    seconds: float
    rate: float | None
    seed: int
    cluster: Cluster
    users: int = USERS
    probe: int = 40_000  # events to measure the maximum with
    memory: Memory = field(default_factory=Memory)
    kills: Counter[str] = field(default_factory=Counter)
    lags: list[int] = field(default_factory=list)
    shown: int = 0  # largest lag that a role itself has reported

    def go(self) -> dict[str, object]:
        """Run, and return the report."""
        cluster, rng = self.cluster, random.Random(self.seed)
        maximum = measure(cluster, self.probe, self.users)
        rate = self.rate or maximum * (10.0 if self.kind == "pressure" else 0.5)
        print(f"maximum {maximum:.0f} events/s; {self.kind} at {rate:.0f} events/s, {self.seconds:.0f} s", flush=True)
        self.memory.sample(cluster, 0.0)
        before = Counter(self.memory.peak)
        flow = Flow(cluster, rate, self.users)
        flow.start()
        self._watch(flow, rng)
        flow.stop()
        self._look(self.seconds)
        lag = self.lags[-1]
        print(f"sending ended; {flow.sent} events sent, lag {lag}", flush=True)
        recovery = Actor(cluster).settle(max(300.0, 3 * self.seconds))
        self.memory.sample(cluster, self.seconds)
        wrong = cluster.faults + violations(
            cluster.book, cluster.ledger, cluster.held, switched=cluster.switched > 0)
        slopes = self.memory.slopes()
        if self.kind == "soak":
            wrong += [f"memory of {name} grows by {mb:.0f} MB/h" for name, mb in slopes.items()
                      if mb > SLOPE_MB_PER_HOUR]
        if self.kind == "pressure" and self.seconds >= 30 and not self.shown:  # a shorter flood may leave no lag
            wrong.append("no role reported a lag")
        growth = {role: self.memory.peak[role] - before[role] for role in before}
        wrong += [f"memory of {role} grew by {mb} MB" for role, mb in growth.items() if mb > GROWTH_MB]
        return {
            "kind": self.kind, "revision": revision(), "seconds": self.seconds, "seed": self.seed,
            "maximum_events_per_s": round(maximum), "events_per_s": round(rate), "events": flow.sent,
            "kills": dict(self.kills), "delivered_again": repeated(cluster.ledger),
            "lag_max": max(self.lags, default=0), "lag_at_end": lag, "lag_max_reported_by_roles": self.shown,
            "recovery_s": round(recovery, 1), "memory_peak_mb": dict(self.memory.peak),
            "memory_slope_mb_per_h": slopes, "supervisors_ended": {i.name: i.ended for i in cluster.instances},
            "wrong": wrong}

    def _watch(self, flow: Flow, rng: random.Random) -> None:
        cluster, started = self.cluster, time.monotonic()
        schedule = gaps(self.kind, self.seconds, rng)
        now = looked = said = 0.0
        wait, number = next(schedule, (float("inf"), 0))
        due = wait
        while now < self.seconds:
            time.sleep(0.05)
            now = time.monotonic() - started
            for instance in cluster.instances:
                instance.tend()
            if now >= due:
                self._kill(rng, number)
                wait, number = next(schedule, (float("inf"), 0))
                due = now + wait
            if now - looked >= LOOK_S:
                looked = now
                self._look(now)
            if now - said >= LINE_S:
                said = now
                faults = len(cluster.faults) + len(cluster.ledger.faults)
                print(f"{now:6.0f} s  {flow.sent:9d} events  lag {self.lags[-1] if self.lags else 0:7d}  "
                      f"kills {sum(self.kills.values()):4d}  faults {faults}  memory "
                      + "  ".join(f"{role} {mb} MB" for role, mb in sorted(self.memory.peak.items())), flush=True)

    def _look(self, now: float) -> None:
        cluster = self.cluster
        cluster.observe()
        self.memory.sample(cluster, now)
        self.lags.append(cluster.lag())
        said = [instance.counters(role).get("lag") or 0 for instance in cluster.instances for role in instance.roles]
        self.shown = max(self.shown, *said)

    def _kill(self, rng: random.Random, number: int) -> None:
        instance, role = rng.choice(self.cluster.instances), rng.choice(ROLES)
        running = instance.running
        if running is None or role not in running.pids:
            return
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(running.pids[role])
            if process.status() != psutil.STATUS_ZOMBIE:
                process.send_signal(number)
                self.kills[f"{signal.Signals(number).name} {role}"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["soak", "kill-loop", "pressure"])
    parser.add_argument("--seconds", type=float, help="length; default 1800, 600 and 300")
    parser.add_argument("--rate", type=float, help="events/s; default half the maximum, or ten times it")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seconds = arguments.seconds or {"soak": 1800.0, "kill-loop": 600.0, "pressure": 300.0}[arguments.kind]
    out = Path("runs") / f"{arguments.kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    out.mkdir(parents=True)
    # The session of the defaults: under load a shorter one ends by itself, which is not meant here.
    with (tempfile.TemporaryDirectory(prefix="freshet-endurance-") as folder,
          Cluster(Path(folder), FRESHET_KAFKA_SESSION_TIMEOUT_S="10") as cluster):
        try:
            report = Run(arguments.kind, seconds, arguments.rate, arguments.seed, cluster).go()
        finally:
            cluster.keep_logs(out)
    (out / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    print((out / "report.json").read_text())
    return bool(report["wrong"])


if __name__ == "__main__":
    sys.exit(main())
