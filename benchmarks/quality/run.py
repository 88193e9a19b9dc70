"""Which system recommends best? All rows of the table and their controls, under both protocols, with several seeds.

    python -m benchmarks.quality.run [--quick] [--systems dense,lwgr] [--controls all|none|first|NAMES] [--seeds 1,2,3]

Finished runs are kept (see `freshet evaluate`), so it goes on where it was interrupted. Writes
benchmarks/results/quality.json, a list of runs, their ranks beside it, docs/quality.svg, docs/quality-training.svg and
the tables of docs/results.md: mean ± standard deviation over seeds and the gain over `dense` with its 95% interval
(paired bootstrap over users, gains averaged over seeds first). Tables are of all runs in quality.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import fill
from benchmarks.quality import page, plot
from benchmarks.quality.ranks import RankBook
from models.measuring.protocols import PROTOCOLS
from models.systems.table import CONTROLS, SYSTEMS, system_named
from schemas.errors import FreshetError
from schemas.settings import FitSettings, Settings, load
from workers.data import movielens
from workers.terminal.stages import Stages
from workers.training.evaluate import EvaluationRun, Evaluator, label

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BEAUTY = ROOT / ".." / "shared" / "data" / "amazon-beauty"
# What suits the reference: chosen on its held-out NDCG@10 alone, used by every row. MovieLens, mean of both protocols
# and seeds 1 and 2: dropout .4 .1144, .5 .1163 (seed 1 alone: .2 .1066, .3 .1114, .4 .1165, .5 .1144, .6 .1125); 1 or 3
# layers or 128 dimensions are no better. Beauty, leave-one-out, NDCG@10 and nats: dropout .3 .0709 8.170, .4 .0699
# 8.136, .5 .0687 8.139. Epochs end by patience; twelve, the default of `freshet fit`, cut it short on both. Components
# of semantic IDs by held-out loss in leave-one-out: MovieLens 16 5.998, 32 6.010, 64 6.069, 128 6.089; Beauty 16 8.341,
# 32 8.289, 128 8.190. The scorer that spells them wants less dropout than the reference (MovieLens, leave-one-out, seed
# 1: .2 .0991, .5 .0769).
TUNED: dict[str, dict[str, Any]] = {
    "movielens-100k": {"dropout": 0.5, "epochs": 80, "id_components": 32, "id_dropout": 0.2},
    "amazon-beauty": {"dropout": 0.4, "epochs": 40, "id_components": 128, "id_dropout": 0.4}}
EVENTS = 4000  # predicted per run: a language model reads a history for each, 15 ms on a CPU core
KEY = ("dataset", "protocol", "system", "control", "seed")


@dataclass(frozen=True, slots=True)
class Choice:
    """What to run on every data set."""

    systems: tuple[str, ...]
    controls: str
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]
    events: int | None = None

    def runs(self) -> Iterator[EvaluationRun]:
        """Yield runs so that those which share a reference come one after the other."""
        for name in self.protocols:
            for seed in self.seeds:
                asked = self.controls.split(",")
                every = "all" in asked or ("first" in asked and seed == self.seeds[0])
                for system in self.systems:
                    controls = [name for name in SYSTEMS[system].controls() if every or name in asked]
                    for control in (None, *controls):
                        yield EvaluationRun(system, name, control, seed, events=self.events)


def record(result: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of quality.json."""
    return {key: result[key] for key in KEY} | {
        "metrics": {name: result["metrics"][name] for name in page.METRICS},
        "seconds": result["seconds"], "revision": result["revision"]}


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return both lists, a new run in the place of an old one with the same key."""
    runs = {tuple(run[key] for key in KEY): run for run in [*old, *new]}
    return [runs[key] for key in sorted(runs, key=lambda key: tuple(str(part) for part in key))]


def evaluate(evaluator: Evaluator, choice: Choice, stages: Stages, folder: Path) -> tuple[list[Any], list[str]]:
    """Run everything on one data set; return results and what failed. Each is saved as soon as it is there."""
    wanted = list(choice.runs())
    results, failed, began = [], [], time.monotonic()
    for at, run in enumerate(wanted):
        left = (time.monotonic() - began) / at * (len(wanted) - at) if at else 0.0
        stages.say(f"[{evaluator.name} {at + 1}/{len(wanted)}, about {left / 60:.0f} min left] {label(run)}")
        try:
            results.append(evaluator.run(run))
        except FreshetError as error:
            failed.append(f"{evaluator.name}, {label(run)}: {error}")
            continue
        save(folder / "quality.json", [record(results[-1])])
        ranks = evaluator.ranks(run)
        book(folder, evaluator.name, run.protocol).add(
            results[-1], ranks["row"], evaluator.users(run, ranks["row"]), ranks["rank"])
    return results, failed


def book(folder: Path, dataset: str, protocol: str) -> RankBook:
    """Return the ranks of a data set and protocol as they are on disk now."""
    return RankBook(folder / "quality-ranks" / f"{dataset}-{protocol}.npz")


def saved(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of quality.json."""
    path = folder / "quality.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return found


def tables(folder: Path) -> dict[str, str]:
    """Return Markdown tables of all that is saved, by data set."""
    runs = saved(folder)
    return {name: page.table(name, page.summarise(
        [run for run in runs if run["dataset"] == name], {each: book(folder, name, each) for each in PROTOCOLS}))
        for name in sorted({run["dataset"] for run in runs})}


def save(path: Path, runs: list[dict[str, Any]]) -> None:
    """Merge runs into a results file, whole or not at all."""
    old = saved(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(merged(old, runs), indent=1) + "\n")
    scratch.replace(path)


def made_up(folder: Path) -> Path:
    """Write a data set of made-up chains into a folder and return it."""
    rng = np.random.default_rng(0)
    events = ["user_id,item_id,timestamp"]
    for user in range(60):
        start = int(rng.integers(40))
        events += [f"{user},{(start + step * (1 + user % 2)) % 40},{user + 100 * step}" for step in range(16)]
    (folder / "events.csv").write_text("\n".join(events) + "\n")
    (folder / "items.jsonl").write_text("".join(f'{{"item_id": "{i}", "title": "thing {i}"}}\n' for i in range(40)))
    return folder


def quick(stages: Stages) -> None:
    """Run the rows that need no language model on made-up chains, in seconds; nothing is saved."""
    with tempfile.TemporaryDirectory() as folder:
        home = made_up(Path(folder))
        settings = replace(Settings(), home=home, fit=FitSettings(dim=16, layers=1, epochs=8, knowledge_epochs=1))
        choice = Choice(("dense",), "extra-steps", PROTOCOLS, (1,))
        _, failed = evaluate(Evaluator(settings, home, stages, "made-up"), choice, stages, home / "results")
        if failed:
            raise FreshetError("; ".join(failed))
        print(tables(home / "results")["made-up"])


def names(text: str, allowed: tuple[str, ...], what: str) -> tuple[str, ...]:
    """Return the comma-separated names of `text`, "all" = `allowed`."""
    chosen = allowed if text == "all" else tuple(part.strip().replace("-", "_") if what == "protocol" else part.strip()
                                                 for part in text.split(","))
    for name in chosen:
        if name not in allowed:
            raise FreshetError(f"unknown {what} {name!r}; there are {', '.join(allowed)}")
    return chosen


def datasets(chosen: tuple[str, ...], settings: Settings) -> list[tuple[str, Path]]:
    """Return names and folders; a data set that is not at hand is left out and said to be."""
    found = []
    for name in chosen:
        if name == "movielens-100k":
            found.append((name, movielens.fetch(settings.home)))
        elif BEAUTY.is_dir():
            found.append((name, BEAUTY))
        else:
            print(f"{BEAUTY} is not there: no {name}")
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.quality.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="made-up data, dense only, seconds, nothing saved")
    parser.add_argument("--systems", default="all", help=f"of {', '.join(SYSTEMS)} (%(default)s)")
    parser.add_argument("--controls", default="all",
                        help="all, none, first (= all, with the first seed only) or names (%(default)s)")
    parser.add_argument("--protocols", default="all", help="of leave-one-out, stream-time (%(default)s)")
    parser.add_argument("--datasets", default="all", help="of movielens-100k, amazon-beauty (%(default)s)")
    parser.add_argument("--seeds", default="1,2,3", help="(%(default)s)")
    parser.add_argument("--events", type=int, default=EVENTS, help="predicted per run, 0 = all (%(default)s)")
    parser.add_argument("--report", action="store_true",
                        help="train nothing: tables and plots of the runs in quality.json")
    args = parser.parse_args(argv)
    failed: list[str] = []
    try:
        with Stages() as stages:
            if args.quick:
                quick(stages)
                return
            settings = load()
            choice = Choice(
                names(args.systems, tuple(SYSTEMS), "system"),
                ",".join(names(args.controls, ("all", "none", "first", *CONTROLS), "control"))
                if args.controls != "all" else "all",
                names(args.protocols, PROTOCOLS, "protocol"), tuple(int(seed) for seed in args.seeds.split(",")),
                args.events or None)
            for system in choice.systems:
                system_named(system)
            moved = []
            chosen = names(args.datasets, ("movielens-100k", "amazon-beauty"), "dataset")
            for name, folder in [] if args.report else datasets(chosen, settings):
                evaluator = Evaluator(replace(settings, fit=replace(settings.fit, **TUNED[name])), folder, stages, name)
                results, lost = evaluate(evaluator, choice, stages, RESULTS)
                failed += lost
                moved += [run for run in results if run["control"] is None and run["seed"] == choice.seeds[0]]
    except FreshetError as error:
        sys.exit(f"benchmarks.quality.run: {error}")
    found = tables(RESULTS)
    print("\n\n".join(found.values()))
    for name, text in found.items():
        fill(ROOT / "docs" / "results.md", f"quality {name}", text)
    plot.draw(saved(RESULTS), ROOT / "docs" / "quality.svg")
    plot.draw_training(moved, ROOT / "docs" / "quality-training.svg")
    print("\nwritten: benchmarks/results/quality.json and quality-ranks, docs/results.md, docs/quality.svg"
          + (", docs/quality-training.svg" if moved else ""))
    if failed:
        sys.exit("benchmarks.quality.run: not done: " + "; ".join(failed))


if __name__ == "__main__":
    main()
