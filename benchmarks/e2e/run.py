"""How long events wait for their recommendation, open loop, at shares of the highest rate that the stack holds.

    python -m benchmarks.e2e.run [--data DIR] [--broker kafka] [--home DIR] [--quick]

Fits a model (or uses the one of --home), starts the whole stack, folds the training part, finds the highest rate with a
window of unanswered events, then sends at 10%, 50% and 80% of it and at --rates. Prints p50, p95 and p99 from the time
an event was due to its recommendation, where the time goes, and from drift to a list that uses the fresh knowledge.
docs/benchmarks.md has the table of the last full runs.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from benchmarks.e2e.load import Measured, OpenLoop, Users
from benchmarks.ingest import brokers
from benchmarks.pages import fill
from models.data import dataset as data
from models.data.loading import load_dataset
from schemas.artifacts import Registry
from schemas.errors import FreshetError
from schemas.events import BehaviourEvent
from schemas.settings import Settings, load, to_environ
from workers.data import movielens
from workers.data.backfill import fold_past
from workers.supervision.stack import Stack, role_environ
from workers.training.revision import revision

ROOT = Path(__file__).resolve().parents[2]
SHARES = (0.1, 0.5, 0.8)
POPULAR = 200  # items that users without later events of their own go on with


def fitted(settings: Settings, folder: Path) -> None:
    """Fit a model on the data, unless the home has one."""
    if Registry(settings.home).versions():
        return
    done = subprocess.run([sys.executable, "-m", "workers.cli", "fit", "--data", str(folder)],
                          env=role_environ(settings, "fit", to_environ(settings)), check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.e2e.run: fitting failed with exit code {done.returncode}")


def users_of(dataset: data.Dataset, past: data.Events, future: data.Events, seed: int) -> Users:
    """Return the users of the later part, with the number of events they had before."""
    futures: dict[str, list[str]] = {}
    for user, item in zip(future.user.tolist(), future.item.tolist(), strict=True):
        futures.setdefault(dataset.users[user], []).append(dataset.items[item])
    counts = np.bincount(past.user, minlength=len(dataset.users)).tolist()
    popular = np.argsort(-np.bincount(past.item, minlength=len(dataset.items)))[:POPULAR]
    return Users(futures, dict(zip(dataset.users, counts, strict=True)),
                 [dataset.items[row] for row in popular.tolist()], seed)


def measured(settings: Settings, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Start the stack and return the figures of all loads."""
    dataset = load_dataset(folder, settings.events)
    fitted(settings, folder)
    past, future = data.split(dataset, settings.fit.train_fraction)
    with ExitStack() as opened:
        if args.broker == "kafka":
            place = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            bootstrap = opened.enter_context(brokers.running("kafka", place))
            settings = replace(settings, kafka=replace(settings.kafka, bootstrap=bootstrap))
        stack = opened.enter_context(Stack(settings, command="up", fresh=True))
        began = time.monotonic()
        fold_past(stack.settings.kafka, (
            BehaviourEvent(user_id=dataset.users[user], item_id=dataset.items[item], event_time=at, event_type="view")
            for user, item, at in zip(past.user.tolist(), past.item.tolist(), past.time.tolist(), strict=True)),
            lambda _left, _moved: stack.check())
        print(f"  {len(past):,} past events folded in {time.monotonic() - began:.0f} s", flush=True)
        work = OpenLoop(stack.settings.kafka, users_of(dataset, past, future, args.seed), stack.check)
        opened.callback(work.close)
        work.open_loop(20.0, args.warm)  # caches, first forward passes
        best = work.closed_loop(args.window, args.seconds)
        print(f"  highest rate {best.rate:,.0f} events/s with {args.window} unanswered", flush=True)
        rates = [*(float(rate) for rate in args.rates.split(",") if rate), *(share * best.rate for share in SHARES)]
        loads = []
        for rate in sorted(rates):
            loads.append(work.open_loop(rate, args.seconds))
            print("  " + line(loads[-1]), flush=True)
        memory = sum(process.memory_info().rss for process in psutil.Process().children(recursive=True))
    return {"data": folder.name, "broker": args.broker, "highest_rate": round(best.rate, 1), "window": args.window,
            "rss_gib": round(memory / 2**30, 2), "loads": [summary(one) for one in loads]}


def summary(load: Measured) -> dict[str, Any]:
    """Return the figures of one load, times in milliseconds."""
    return {"rate": round(load.rate, 1), "seconds": round(load.seconds, 1), "answered": len(load.waits),
            "unanswered": load.unanswered, "ms": load.quantiles(load.waits),
            "stages_ms": {name: load.quantiles(values) for name, values in load.stages.items()},
            "refreshes": load.refreshes, "drift_to_use": len(load.refreshed),
            "drift_to_use_ms": load.quantiles(load.refreshed)}


def line(load: Measured) -> str:
    """Return a load's figures as one line."""
    found = summary(load)
    return (f"{found['rate']:,.0f} events/s: p50 p95 p99 {found['ms']} ms; stages' p50 "
            f"{ {name: values[0] for name, values in found['stages_ms'].items()} }; drift to use "
            f"{found['drift_to_use']} times {found['drift_to_use_ms']} ms; unanswered {found['unanswered']}")


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    out = ["| data, broker | highest rate | events/s | p50 | p95 | p99 | drift → use, p99 |",
           "|---|--:|--:|--:|--:|--:|--:|"]
    for result in results:
        for at, one in enumerate(result["loads"]):
            first = (f"{result['data']}, {result['broker']} | {result['highest_rate']:,.0f} events/s" if at == 0
                     else " | ")
            quantiles = " | ".join(f"{value:,.0f} ms" for value in one["ms"]) or "– | – | –"
            drift = f"{one['drift_to_use_ms'][2]:,.0f} ms" if one["drift_to_use_ms"] else "–"
            out.append(f"| {first} | {one['rate']:,.0f} | {quantiles} | {drift} |")
    return "\n".join(out)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.e2e.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set (MovieLens-100K)")
    parser.add_argument("--home", type=Path, help="use the model of this home (a new home: fit first)")
    parser.add_argument("--broker", choices=["embedded", "kafka"], default="embedded", help="(%(default)s)")
    parser.add_argument("--rates", default="50,200,400", help="further rates, events/s (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of each load (%(default)s)")
    parser.add_argument("--warm", type=float, default=10.0, help="seconds at 20 events/s before (%(default)s)")
    parser.add_argument("--window", type=int, default=400, help="unanswered events for the highest rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="who acts when (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few seconds and epochs, saves nothing")
    args = parser.parse_args(argv)
    if args.broker == "kafka" and brokers.kafka_home() is None:
        parser.error("--broker kafka needs Java and KAFKA_HOME (a folder with a `start DIR PORT` script)")
    settings = load()
    if args.quick:
        args.rates, args.seconds, args.warm = "20", 3.0, 2.0
        settings = replace(settings, fit=replace(settings.fit, epochs=1, knowledge_epochs=1))
    with tempfile.TemporaryDirectory() as place:
        settings = replace(settings, home=(args.home or Path(place)).absolute())
        try:
            folder = args.data or movielens.fetch(settings.home, print)
            results = [measured(settings, folder, args)]
        except FreshetError as error:
            raise SystemExit(f"benchmarks.e2e.run: {error}") from None
    print("\n" + table(results))
    if not args.quick:
        name = f"e2e-{results[0]['data']}-{args.broker}"
        facts = {"revision": revision(), "cpus": psutil.cpu_count(), "processor": platform.processor(), **results[0]}
        (ROOT / f"benchmarks/results/{name}.json").write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
        saved = sorted((ROOT / "benchmarks/results").glob("e2e-*.json"))
        fill(ROOT / "docs/benchmarks.md", "e2e", table([orjson.loads(path.read_bytes()) for path in saved]))


if __name__ == "__main__":
    main()
