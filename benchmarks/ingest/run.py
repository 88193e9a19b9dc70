"""Ingest benchmark: Freshet's profile stage, idiomatic Faust, Quix Streams, Bytewax and a bare consumer.

    python -m benchmarks.ingest.run [--quick] [--systems freshet,quix] [--broker kafka|embedded] …

All systems do the same job on the same topic and broker, one after the other, in several rounds. docs/benchmarks.md
explains the measurement. Writes the table there and benchmarks/results/ingest.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka.admin import AdminClient

from benchmarks.ingest import brokers, equality, fold, results
from benchmarks.ingest.events import Record, Workload, generate, produce, write_vectors
from benchmarks.ingest.measure import Run, RunError, Setting, measure
from benchmarks.ingest.systems import SYSTEMS, IngestSystem, set_up_peers, versions
from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.topics import BEHAVIOUR_EVENTS
from streams.profile.decoding import BACKFILL_HEADER
from workers.kafka.topics import create_topics
from workers.training.revision import revision

SAMPLED_USERS = 200


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.ingest.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smoke test: 20,000 events, one round, saves nothing")
    parser.add_argument("--events", type=int, help="events in the topic (400,000)")
    parser.add_argument("--users", type=int, default=5_000, help="users (%(default)s)")
    parser.add_argument("--items", type=int, default=2_000, help="items (%(default)s)")
    parser.add_argument("--partitions", type=int, default=4, help="partitions (%(default)s)")
    parser.add_argument("--repeats", type=int, help="rounds over all systems (3)")
    parser.add_argument("--prefix", type=int, help="number of events for idiomatic Faust (30,000)")
    parser.add_argument("--systems", default=",".join(s.name for s in SYSTEMS), help="comma-separated (%(default)s)")
    parser.add_argument("--broker", choices=["kafka", "embedded"],
                        help="default: Apache Kafka if KAFKA_HOME or ../shared/kafka has it, else the embedded broker")
    parser.add_argument("--commit", type=float, default=1.0, help="seconds between commits, all systems (%(default)s)")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=None,
                        help="pin each system to one core and the broker to the others (default: if possible)")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=None,
                        help="write benchmarks/results/ingest.json and docs/benchmarks.md (default: full runs only)")
    args = parser.parse_args(argv)
    args.events = args.events or (20_000 if args.quick else 400_000)
    args.repeats = args.repeats or (1 if args.quick else 3)
    args.prefix = min(args.events, args.prefix or (4_000 if args.quick else 30_000))
    known = {system.name for system in SYSTEMS}
    args.systems = [name.strip() for name in args.systems.split(",")]
    if unknown := set(args.systems) - known:
        parser.error(f"unknown systems: {', '.join(sorted(unknown))}; available: {', '.join(sorted(known))}")
    if args.broker == "kafka" and brokers.kafka_home() is None:
        parser.error("--broker kafka needs Java and KAFKA_HOME (a folder with a `start DIR PORT` script)")
    args.broker = args.broker or ("kafka" if brokers.kafka_home() else "embedded")
    can_pin = hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1
    args.pin = can_pin if args.pin is None else args.pin and can_pin
    if args.save is None:
        args.save = not args.quick and set(args.systems) == known
    return args


def sample_of(records: list[Record]) -> list[str]:
    """Return the users to compare states of: one half the most active users, the other half spread over the rest."""
    counts: dict[str, int] = {}
    for user, _ in records:
        counts[user] = counts.get(user, 0) + 1
    ranked = sorted(counts, key=lambda user: (-counts[user], user))
    half = SAMPLED_USERS // 2
    return ranked[:half] + ranked[half::max(1, (len(ranked) - half) // half)][:half]


def one_run(system: IngestSystem, setting: Setting, label: str) -> Run:
    started, printed = time.monotonic(), 0.0

    def progress(events: int) -> None:
        nonlocal printed
        if time.monotonic() - printed > 2.0:
            printed = time.monotonic()
            print(f"  {label} {system.title}: {events:,} events, {printed - started:.0f} s", flush=True)

    run = measure(system, setting, progress)
    print(f"  {label} {system.title}: {run.events / run.seconds:,.0f} events/s, "
          f"{run.events / run.cpu_seconds:,.0f} per CPU second ({run.events:,} events in {run.seconds:.1f} s, "
          f"{time.monotonic() - started:.0f} s including start and stop)", flush=True)
    return run


def drop_topics(bootstrap: str) -> None:
    """Delete the changelogs of the last run, so that the broker never stores those of several runs."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    names = [name for name in admin.list_topics(timeout=10).topics if "bench-" in name]
    if names:
        for outcome in admin.delete_topics(names).values():
            outcome.result(30)


def compare(args: argparse.Namespace, bootstrap: str, folder: Path, core: int | None) -> dict[str, Any]:
    """Produce the events, run all systems in turn `repeats` times, check their states and return the figures."""
    work = Workload(events=args.events, users=args.users, items=args.items, partitions=args.partitions)
    vectors = folder / "vectors.npy"
    write_vectors(work, vectors)
    records = generate(work)
    sample = sample_of(records)
    create_topics(KafkaSettings(bootstrap=bootstrap, partitions=work.partitions))
    started = time.monotonic()
    produce(bootstrap, BEHAVIOUR_EVENTS.name, records, [(BACKFILL_HEADER, b"1")])
    print(f"produced {len(records):,} events in {time.monotonic() - started:.1f} s", flush=True)
    truth = equality.expected(records, sample, fold.catalogue(vectors))
    setting = Setting(bootstrap, BEHAVIOUR_EVENTS.name, work.partitions, vectors, folder, sample, args.commit,
                      len(records), args.prefix, core)
    installed = versions()
    chosen = []
    for system in SYSTEMS:
        if system.name in args.systems and not system.own and system.package not in installed:
            print(f"skipping {system.title}: {system.package} has no build for this Python", flush=True)
        elif system.name in args.systems:
            chosen.append(system)
    runs: dict[str, list[Run]] = {system.name: [] for system in chosen}
    for repeat in range(args.repeats):
        for system in chosen:
            run = one_run(system, setting, f"[{repeat + 1}/{args.repeats}]")
            complete = not system.prefix or args.prefix == args.events
            if wrong := equality.differences(run.states, truth, complete=complete):
                raise RunError(f"{system.title} has wrong states: {len(wrong)} differences, e.g. {wrong[:5]}")
            runs[system.name].append(run)
            drop_topics(bootstrap)
    return {
        "systems": results.summarise(runs), "repeats": args.repeats, "prefix": args.prefix,
        "workload": dataclasses.asdict(work), "checked_users": len(sample), "commit_s": args.commit,
        "pinned": core is not None, "broker": "Apache Kafka" if args.broker == "kafka" else "embedded (tansu)",
        "versions": installed, "revision": revision(),
        "machine": {"cpus": psutil.cpu_count(), "system": platform.system(), "processor": platform.machine(),
                    "python": platform.python_version()}}


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    started = time.monotonic()
    set_up_peers()
    core = None
    if args.pin:
        *others, core = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(others))  # the broker inherits it
    print(f"{args.events:,} events, {args.repeats} rounds, broker: {args.broker}, "
          f"{'one core per system' if args.pin else 'not pinned'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as scratch:
        try:
            with brokers.running(args.broker, Path(scratch)) as bootstrap:
                result = compare(args, bootstrap, Path(scratch), core)
        except (RunError, FreshetError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(f"\n{results.table(result['systems'])}\n\nstates of {result['checked_users']} users equal in all systems; "
          f"{time.monotonic() - started:.0f} s")
    if args.quick:
        print("smoke test only: the time of such a short run is mostly that of the last commit")
    if args.save and len(result["systems"]) == len(SYSTEMS):
        results.write(result)
        print("wrote benchmarks/results/ingest.json and docs/benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
