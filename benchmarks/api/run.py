"""The HTTP interface on the embedded stack, while events come in: time of answers at a fixed rate of requests.

    python -m benchmarks.api.run [--home DIR] [--rate 200] [--seconds 60] [--quick]

It needs a home with a fitted model (`freshet demo` or `freshet fit` makes one); it works on a copy. A full run writes
benchmarks/results/api.json and the section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from benchmarks.api.load import LoadAnswers, ask_all, quantile, schedule
from benchmarks.ingest.systems import ROOT
from benchmarks.pages import fill
from schemas.artifacts import Registry
from schemas.events import BehaviourEvent
from schemas.settings import KafkaSettings, load
from workers.data.produce import EventProducer
from workers.home.stack_info import Running, find
from workers.supervision.broker import free_port

LIMIT_S = 0.020  # p99
EACH = 6  # events of a user before the measurement: enough for knowledge


@contextmanager
def stack(home: Path, port: int) -> Iterator[Running]:
    """Run `freshet up` on `home` with a console at `port`."""
    environ = {key: value for key, value in os.environ.items()
               if not key.startswith("FRESHET_") or key.startswith(("FRESHET_LLM_", "FRESHET_FIT_"))}
    environ |= {"FRESHET_HOME": str(home), "FRESHET_CONSOLE_PORT": str(port), "FRESHET_RANKING_TOP": "10"}
    with (home / "up.log").open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "workers.cli", "up"], env=environ, stdout=out, stderr=out,
                                   cwd=ROOT)
    try:
        until = time.monotonic() + 400
        while (running := find(home)) is None or not running.ready or not answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit((home / "up.log").read_text())
            time.sleep(0.2)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int, path: str = "/v1/health") -> bool:
    """Return whether the console answers with 200."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def produce(kafka: KafkaSettings, users: list[str], items: list[str], each: int) -> None:
    """Send `each` events of every user."""
    rng = random.Random(1)
    sender = EventProducer(kafka)
    now = time.time()
    for step in range(each):
        for user in users:
            sender.send(BehaviourEvent(user_id=user, item_id=rng.choice(items), event_time=now - 60 * (each - step)))
    sender.flush()


def traffic(kafka: KafkaSettings, users: list[str], items: list[str], rate: float, stop: threading.Event) -> None:
    """Send `rate` events a second until `stop`."""
    rng, sender, due = random.Random(2), EventProducer(kafka), time.monotonic()
    while not stop.is_set():
        sender.send(BehaviourEvent(user_id=rng.choice(users), item_id=rng.choice(items), event_time=time.time()))
        due += rng.expovariate(rate)
        stop.wait(max(0.0, due - time.monotonic()))
    sender.flush()


def measure(home: Path, rate: float, seconds: float, number: int, events: float) -> dict:
    """Return the figures of one run on a copy of `home`'s models."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shutil.copytree(home / "models", place / "models")
        items = Registry(place).open().items()
        users, port = [f"user {n}" for n in range(number)], free_port()
        with stack(place, port) as running:
            kafka = replace(KafkaSettings(), bootstrap=running.bootstrap)
            produce(kafka, users, items, EACH)
            for user in users[-20:]:  # all of them are ranked
                wait(lambda user=user: answers(port, f"/v1/users/{user.replace(' ', '%20')}/recommendations"), 300)
            wait(lambda: idle(place), 600)  # knowledge of all of them is made: what is measured is the steady state
            stop = threading.Event()
            feeding = threading.Thread(target=traffic, args=(kafka, users, items, events, stop))
            if events:
                feeding.start()
            console = psutil.Process(running.pids["console"])
            busy, delay = sum(console.cpu_times()[:2]), waited(console.pid)
            asked = schedule(rate, seconds, users, items)
            found = asyncio.run(ask_all(f"http://127.0.0.1:{port}", asked))
            stop.set()
            busy, delay = (sum(console.cpu_times()[:2]) - busy) / seconds, (waited(console.pid) - delay) / seconds
            if events:
                feeding.join()
            return figures(found, rate, seconds, number, events) | {
                "console_cpu": round(busy, 3), "console_waits": round(delay, 3),
                "load": round(os.getloadavg()[0], 1), "console_rss_mb": round(console.memory_info().rss / 1e6)}


def waited(pid: int) -> float:
    """Return how long a process's threads have waited for a processor, seconds; 0 where the system does not say."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError):
            continue
    return total / 1e9


def idle(home: Path) -> bool:
    """Return whether no role has work, now and 3 s later."""
    for _ in range(2):
        for role in ("streams", "knowledge", "ranking"):
            found = json.loads((home / "run" / f"{role}.json").read_text())
            if found["busy"] or found["lag"]:
                return False
        time.sleep(1.5)
    return True


def wait(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise SystemExit("the stack does not keep up")
        time.sleep(0.2)


def figures(found: LoadAnswers, rate: float, seconds: float, users: int, events: float) -> dict:
    """Return what is printed and kept; times in milliseconds."""
    every = [one for values in found.seconds.values() for one in values]

    def row(values: list[float]) -> dict:
        return {"requests": len(values)} | {
            name: round(1000 * quantile(values, share), 2) for name, share in (
                ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))} | {"most": round(1000 * max(values), 2)}

    return {"rate": rate, "seconds": seconds, "users": users, "events_per_s": events, "cpus": os.cpu_count(),
            "status": {str(status): number for status, number in sorted(found.status.items())}, "all": row(every),
            "kinds": {kind: row(values) for kind, values in sorted(found.seconds.items())}}


def table(result: dict) -> str:
    """Return the figures as a table."""
    rows = ["| | requests | p50 | p90 | p99 | p99.9 | longest |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, one in (("all", result["all"]), *result["kinds"].items()):
        rows.append(f"| {name} | {one['requests']:,} | {one['p50']:.1f} | {one['p90']:.1f} | {one['p99']:.1f} | "
                    f"{one['p999']:.1f} | {one['most']:.1f} |")
    status = ", ".join(f"{number:,} × {status}" for status, number in result["status"].items())
    rows.append(f"\nMilliseconds from when a request was due. {result['rate']:g} requests and "
                f"{result['events_per_s']:g} events a second for {result['seconds']:g} s, {result['users']:,} users, "
                "the whole embedded stack and "
                f"the client on {result['cpus']} CPUs; the console takes {result['console_cpu']:.0%} of a core, "
                f"waits for one {result['console_waits']:.0%} of the time (load {result['load']:g}) and takes "
                f"{result['console_rss_mb']} MB. Answers: {status}.")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a home with a fitted model [default: FRESHET_HOME]")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--events", type=float, default=10.0, help="events a second meanwhile")
    parser.add_argument("--quick", action="store_true", help="10 s, 50 users, nothing written")
    options = parser.parse_args()
    seconds, users = (10.0, 50) if options.quick else (options.seconds, options.users)
    result = measure((options.home or load().home).absolute(), options.rate, seconds, users, options.events)
    print(table(result))
    late = result["all"]["p99"] > 1000 * LIMIT_S
    print(f"\np50 {result['all']['p50']:.1f} ms, p99 {result['all']['p99']:.1f} ms: "
          f"{'above' if late else 'within'} {1000 * LIMIT_S:g} ms")
    if not options.quick:
        (ROOT / "benchmarks" / "results" / "api.json").write_text(json.dumps(result, indent=1) + "\n")
        fill(ROOT / "docs" / "benchmarks.md", "api", table(result))
    sys.exit(late or set(result["status"]) - {"200", "304"} != set())


if __name__ == "__main__":
    main()
