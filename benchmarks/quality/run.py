"""Which system recommends best? All systems and their controls, under both protocols, with several seeds.

    python -m benchmarks.quality.run [--quick] [--rows cheap|NAMES] [--ties strict,file] [--seeds 1,2,3]

Finished runs are cached (see `freshet evaluate`), so an interrupted run can be resumed. Writes
benchmarks/results/quality.json (a list of runs), the ranks, docs/quality.svg, docs/quality-training.svg and the tables
of docs/results.md: mean ± standard deviation over seeds, and the gain over the reference with its 95% interval (paired
bootstrap over users, and over training where there are several seeds). The tables include all runs in quality.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import fill
from benchmarks.quality import page, plot
from benchmarks.quality.ranks import Name, RankBook
from models.measuring.protocols import PROTOCOLS, TIES
from models.systems.table import SYSTEMS, system_named
from schemas.errors import FreshetError
from schemas.files import write_whole
from schemas.settings import FitSettings, Settings, load
from workers.data import movielens
from workers.terminal.stages import Stages
from workers.training.evaluate import EvaluationRun, Evaluator, label

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BEAUTY = ROOT / ".." / "shared" / "data" / "amazon-beauty"
# Settings chosen on the reference's held-out events only, and used by every row. Dropout: MovieLens .1163 NDCG@10 with
# .5, .1144 with .4 (mean of both protocols, seeds 1 and 2); Beauty 8.136 nats with .4, 8.170 with .3. Training stops by
# patience; the 12 epochs of `freshet fit` are too few on both. Components of semantic IDs by held-out loss: Beauty
# 8.190 with 128, 8.289 with 32; MovieLens 6.010 with 32, 6.089 with 128. The scorer of semantic IDs needs less dropout
# than the reference (MovieLens, leave-one-out, seed 1: .0991 with .2, .0769 with .5).
TUNED: dict[str, dict[str, Any]] = {
    "movielens-100k": {"dropout": 0.5, "epochs": 80, "id_components": 32, "id_dropout": 0.2},
    "amazon-beauty": {"dropout": 0.4, "epochs": 40, "id_components": 128, "id_dropout": 0.4}}
EVENTS = 4000  # predicted events of rows that read histories with a language model, 15 ms each on a CPU core
KEY = ("dataset", "protocol", "ties", "system", "control", "seed")


@dataclass(frozen=True, slots=True)
class Choice:
    """The runs to make on every data set.

    Args:
        rows: systems and controls.
        events: maximum number of events that rows with a language model predict; None = all. Other rows predict all.
    """

    rows: tuple[Name, ...]
    protocols: tuple[str, ...]
    ties: tuple[str, ...]
    seeds: tuple[int, ...]
    events: int | None = None

    def runs(self) -> Iterator[EvaluationRun]:
        """Yield the runs, grouped so that runs with the same reference are adjacent.

        Rows with a language model per event are not run with the file's ties, which are for comparison with published
        figures only.
        """
        for protocol, ties, seed in product(self.protocols, self.ties, self.seeds):
            for system, control in self.rows:
                if cheap(system) or ties == "strict":
                    yield EvaluationRun(
                        system, protocol, control, seed, events=None if cheap(system) else self.events, ties=ties)


def cheap(system: str) -> bool:
    """Return whether a row costs no language model per event, and so predicts all events."""
    return not SYSTEMS[system].has_knowledge and SYSTEMS[system].backbone != "semantic-ids"


def chosen_rows(text: str) -> tuple[Name, ...]:
    """Return the rows that a text names: "all", "cheap", or names of systems or SYSTEM/CONTROL with commas.

    Raises:
        FreshetError: a row does not exist.
    """
    every = [(system, control) for system, row in SYSTEMS.items() for control in (None, *row.controls())]
    if text == "all":
        return tuple(every)
    if text == "cheap":
        return tuple((system, control) for system, control in every
                     if cheap(system) and not SYSTEMS[system].needs_llm and control not in {"extra-steps", "text-init"})
    out = []
    for part in text.split(","):
        system, _, control = part.strip().partition("/")
        system_named(system, control or None)
        out.append((system, control or None))
    return tuple(out)


def record(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result's entry in quality.json."""
    return {key: result[key] for key in KEY} | page.entry(result) | {
        "seconds": result["seconds"], "revision": result["revision"]}


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return both lists; new runs replace old ones with the same key."""
    runs = {tuple(run[key] for key in KEY): run for run in [*old, *new]}
    return [runs[key] for key in sorted(runs, key=lambda key: tuple(str(part) for part in key))]


def evaluate(evaluator: Evaluator, choice: Choice, stages: Stages, folder: Path) -> tuple[list[Any], list[str]]:
    """Make all runs on one data set and save each when it finishes; return results and failures."""
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
        book(folder, evaluator.name, run.protocol, run.ties).add(
            results[-1], evaluator.predicted(run, ranks["row"]), ranks["rank"])
    return results, failed


def book(folder: Path, dataset: str, protocol: str, ties: str) -> RankBook:
    """Return the stored ranks of a data set, protocol and order of ties."""
    return RankBook(folder / "quality-ranks" / f"{dataset}-{protocol}-{ties}.npz")


def saved(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of quality.json."""
    path = folder / "quality.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return runs


def tables(folder: Path) -> dict[str, str]:
    """Return Markdown tables of all saved runs, by data set."""
    runs = saved(folder)
    return {name: page.table(name, page.summarise(
        [run for run in runs if run["dataset"] == name],
        {pair: book(folder, name, *pair) for pair in product(PROTOCOLS, TIES)}))
        for name in sorted({run["dataset"] for run in runs})}


def compared(folder: Path, first: Name, second: Name) -> list[str]:
    """Return a line per data set and protocol: the lead of one row over another on known items, strict ties."""
    lines = []
    for dataset, protocol in sorted({(run["dataset"], run["protocol"]) for run in saved(folder)}):
        seeds = sorted({run["seed"] for run in saved(folder)})
        lead = book(folder, dataset, protocol, "strict").above(first, second, seeds)
        if lead is not None:
            lines.append(f"{dataset}, {protocol.replace('_', '-')}: NDCG@10 {lead.mean:+.4f} [{lead.low:+.4f}, "
                         f"{lead.high:+.4f}], {lead.seeds} seed{'s' * (lead.seeds != 1)}")
    return lines


def save(path: Path, runs: list[dict[str, Any]]) -> None:
    """Merge runs into a results file, atomically."""
    old = saved(path.parent)
    write_whole(path, json.dumps(merged(old, runs), indent=1).encode() + b"\n")


def made_up(folder: Path) -> Path:
    """Write a synthetic data set of item chains into a folder and return the folder."""
    rng = np.random.default_rng(0)
    events = ["user_id,item_id,timestamp"]
    for user in range(60):
        start = int(rng.integers(40))
        events += [f"{user},{(start + step * (1 + user % 2)) % 40},{1_600_000_000 + user + 100 * step}"
                   for step in range(16)]
    (folder / "events.csv").write_text("\n".join(events) + "\n")
    (folder / "items.jsonl").write_text("".join(f'{{"item_id": "{i}", "title": "thing {i}"}}\n' for i in range(40)))
    return folder


def quick(stages: Stages) -> None:
    """Run rows that need no language model on synthetic data, in seconds; save nothing."""
    with tempfile.TemporaryDirectory() as folder:
        home = made_up(Path(folder))
        settings = replace(Settings(), home=home, fit=FitSettings(dim=16, layers=1, epochs=8, knowledge_epochs=1))
        choice = Choice(chosen_rows("popularity,walk,evidence,dense"), PROTOCOLS, ("strict", "file"), (1,))
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
            raise FreshetError(f"unknown {what} {name!r}; available: {', '.join(allowed)}")
    return chosen


def datasets(chosen: tuple[str, ...], settings: Settings) -> list[tuple[str, Path]]:
    """Return names and folders; skip a data set that does not exist, with a message."""
    out = []
    for name in chosen:
        if name == "movielens-100k":
            out.append((name, movielens.fetch(settings.home)))
        elif BEAUTY.is_dir():
            out.append((name, BEAUTY))
        else:
            print(f"skipping {name}: {BEAUTY} does not exist")
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.quality.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="cheap rows on synthetic data, in seconds; saves nothing")
    parser.add_argument("--rows", default="all", help="all, cheap (no language model), or names with commas, controls "
                        f"as SYSTEM/CONTROL; systems: {', '.join(SYSTEMS)} (%(default)s)")
    parser.add_argument("--protocols", default="all", help="comma-separated: leave-one-out, stream-time (%(default)s)")
    parser.add_argument("--ties", default="strict,file", help=f"comma-separated: {', '.join(TIES)} (%(default)s)")
    parser.add_argument("--datasets", default="all",
                        help="comma-separated: movielens-100k, amazon-beauty (%(default)s)")
    parser.add_argument("--seeds", default="1,2,3", help="(%(default)s)")
    parser.add_argument("--events", type=int, default=EVENTS, help="predicted events of rows that read histories with "
                        "a language model, 0 = all (%(default)s)")
    parser.add_argument("--report", action="store_true",
                        help="only write tables and plots of the runs in quality.json, without training")
    parser.add_argument("--compare", nargs=2, metavar="ROW",
                        help="only print the lead of the first row over the second one, from stored ranks")
    args = parser.parse_args(argv)
    failed: list[str] = []
    try:
        with Stages() as stages:
            if args.quick:
                quick(stages)
                return
            if args.compare:
                print("\n".join(compared(RESULTS, *(chosen_rows(row)[0] for row in args.compare))))
                return
            settings = load()
            choice = Choice(
                chosen_rows(args.rows), names(args.protocols, PROTOCOLS, "protocol"), names(args.ties, TIES, "ties"),
                tuple(int(seed) for seed in args.seeds.split(",")), args.events or None)
            with_history = []
            chosen = names(args.datasets, ("movielens-100k", "amazon-beauty"), "dataset")
            for name, folder in [] if args.report else datasets(chosen, settings):
                evaluator = Evaluator(replace(settings, fit=replace(settings.fit, **TUNED[name])), folder, stages, name)
                results, failures = evaluate(evaluator, choice, stages, RESULTS)
                failed += failures
                with_history += [run for run in results if run["control"] is None and run["seed"] == choice.seeds[0]]
    except FreshetError as error:
        sys.exit(f"benchmarks.quality.run: {error}")
    pages = tables(RESULTS)
    print("\n\n".join(pages.values()))
    for name, text in pages.items():
        fill(ROOT / "docs" / "results.md", f"quality {name}", text)
    plot.draw(saved(RESULTS), ROOT / "docs" / "quality.svg")
    plot.draw_training(with_history, ROOT / "docs" / "quality-training.svg")
    print("\nwrote benchmarks/results/quality.json and quality-ranks, docs/results.md, docs/quality.svg"
          + (", docs/quality-training.svg" if with_history else ""))
    if failed:
        sys.exit("benchmarks.quality.run: failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
