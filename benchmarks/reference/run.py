"""Is the reference tuned? Varies its settings one at a time and compares them on held-out events, never test events.

    python -m benchmarks.reference.run [--quick] [--datasets movielens-100k,amazon-beauty] [--protocol stream-time]

A comparison with `freshet` is only fair if the baseline is well tuned. Prints NDCG@10 and loss of the best epoch on
held-out events, for each change and for the settings that `make bench-quality` uses in every row. Trained scorers are
cached (shared with `freshet evaluate`), so an interrupted run can be resumed. Writes benchmarks/results/reference.json
and the table in docs/results.md; other data sets and protocols stay in both.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.pages import fill
from benchmarks.quality.run import RESULTS, ROOT, TUNED, datasets, made_up, names
from models.data.loading import load_dataset
from models.measuring.protocols import protocol
from models.scorers.training import train_reference
from schemas.errors import FreshetError
from schemas.settings import FitSettings, Settings, load
from workers.terminal.stages import Stages, TrainingStages
from workers.training.revision import revision
from workers.training.scorer_cache import ScorerCache

PATH = RESULTS / "reference.json"
CHANGES: tuple[dict[str, Any], ...] = (
    {}, {"layers": 1}, {"layers": 3}, {"dim": 128}, {"dropout": 0.2}, {"dropout": 0.3}, {"dropout": 0.4},
    {"dropout": 0.5}, {"dropout": 0.6})


def measure(
    settings: Settings, folder: Path, which: str, stages: Stages, changes: tuple[dict[str, Any], ...] = CHANGES,
) -> list[dict[str, Any]]:
    """Return one entry per change of the settings: the change, and metrics of the best epoch."""
    dataset = load_dataset(folder)
    split = protocol(which, dataset)
    keep = ScorerCache(settings.home / "cache" / "scorers")
    points = []
    for change in changes:
        if change and all(getattr(settings.fit, name) == value for name, value in change.items()):
            continue  # no change
        fit = replace(settings.fit, **change)
        with ExitStack() as opened:
            report = TrainingStages(stages, opened)
            label = described(change)
            _, about = train_reference(
                split.fold, fit, settings.state.history,
                lambda done, total, now, report=report, label=label: report(label, done, total, now), keep)
        points.append({"change": change} | {name: about[name] for name in ("ndcg_at_10", "nll", "epoch", "n")})
    return points


def saved(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the points of earlier runs with this seed."""
    last: dict[str, Any] = json.loads(PATH.read_text()) if PATH.is_file() else {}
    points: dict[str, list[dict[str, Any]]] = last.get("points", {})
    return points if last.get("seed") == seed else {}


def described(change: dict[str, Any]) -> str:
    """Return a change as text."""
    return ", ".join(f"{name} {value:g}" for name, value in change.items()) or "as used"


def table(by_dataset: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table with columns per data set; "–" = this setting is the one in use."""
    rows = ["| settings | " + " | ".join(f"{name}: NDCG@10 | loss, nats | epoch" for name in by_dataset) + " |",
            "|---|" + "--:|--:|--:|" * len(by_dataset)]
    for change in CHANGES:
        cells = []
        for points in by_dataset.values():
            point = next((point for point in points if point["change"] == change), None)
            cells += ["–"] * 3 if point is None else [
                f"{point['ndcg_at_10']:.4f}", f"{point['nll']:.3f}", f"{point['epoch']:.0f}"]
        if set(cells) != {"–"}:
            rows.append(f"| {described(change)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.reference.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="synthetic data, takes seconds, saves nothing")
    parser.add_argument("--datasets", default="all",
                        help="comma-separated: movielens-100k, amazon-beauty (%(default)s)")
    parser.add_argument("--protocol", choices=("leave-one-out", "stream-time"), default="leave-one-out",
                        help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    args = parser.parse_args(argv)
    which, points = args.protocol.replace("-", "_"), {}
    try:
        with TemporaryDirectory() as scratch, Stages() as stages:
            if args.quick:
                home = made_up(Path(scratch))
                settings = replace(Settings(), home=home, fit=FitSettings(dim=16, layers=1, epochs=3))
                points["made-up"] = measure(settings, home, which, stages, ({}, {"dim": 128}))
            else:
                for name, folder in datasets(names(args.datasets, tuple(TUNED), "dataset"), load()):
                    fit = replace(load().fit, **TUNED[name], seed=args.seed)
                    points[f"{name}, {args.protocol}"] = measure(replace(load(), fit=fit), folder, which, stages)
    except FreshetError as error:
        sys.exit(f"benchmarks.reference.run: {error}")
    if args.quick:
        print(table(points))
        return
    points = saved(args.seed) | points
    print(table(points))
    PATH.write_text(json.dumps({"seed": args.seed, "revision": revision(), "points": points}, indent=1) + "\n")
    fill(ROOT / "docs" / "results.md", "reference", table(points))
    print("\nwrote benchmarks/results/reference.json and docs/results.md")


if __name__ == "__main__":
    main()
