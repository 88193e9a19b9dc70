"""Drift benchmark: Freshet's CUSUM compared with river's Page–Hinkley and ADWIN, on planted changes of user.

    python -m benchmarks.drift.run [--quick]

Every detector is tuned and calibrated on one half of the users and measured on the other; docs/drift.md explains it.
Writes the tables and curves of docs/drift.md, and benchmarks/results/drift.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drift import plots
from benchmarks.drift.detectors import Histories, Kind, adwin, cusum, delays, level, page_hinkley
from benchmarks.drift.streams import BEAUTY, Planted, Population, made_up, plant, population, shuffles
from benchmarks.pages import fill
from schemas.errors import FreshetError
from schemas.settings import load
from streams.calibration.alarms import Watched, rate, watch
from streams.detection.drift import Detector
from workers.data import movielens
from workers.training.fit import FALSE_ALARM_EVERY, PRIOR, SLACK
from workers.training.revision import revision

ROOT = Path(__file__).resolve().parents[2]
JSON_PATH, PAGE = ROOT / "benchmarks" / "results" / "drift.json", ROOT / "docs" / "drift.md"
WITHIN = (5, 10, 20, 50)
RATES = (100.0, FALSE_ALARM_EVERY, 400.0)
FORMER = (10.0, 0.5)  # the default prior and slack before this comparison


@dataclass(frozen=True)
class Half:
    """One half of the users: histories without drift, with planted drift, and in their original order."""

    calm: Histories
    planted: Histories
    change: np.ndarray
    ordered: Histories

    @classmethod
    def of(cls, population: Population, users: list[Any], count: int, least: int, seed: int) -> Half:
        vectors, first = population.vectors, population.first
        changes: Planted = plant(population, users, count, least, seed)
        calm = shuffles(users, first, seed)
        return cls(Histories.of(calm, vectors, first), Histories.of(changes.rows, vectors, first), changes.change,
                   Histories.of([h.rows[:len(rows)] for h, rows in zip(users, calm, strict=True)], vectors, first))


def every(seen: Watched) -> float:
    return float(seen.watched.sum()) / max(len(seen.user), 1)


def strictness_for(kind: Kind, calm: Histories, stated: float) -> float | None:
    """Return the smallest strictness with at most one alarm per `stated` events; None if even 1 alarms more often."""
    if every(kind.at(calm, 1.0)) < stated:
        return None
    low, high = 0.0, 1.0
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if every(kind.at(calm, middle)) < stated else (low, middle)
    return high


def tuned(kinds: list[Kind], half: Half, say: Callable[[str], None]) -> Kind:
    """Return the kind that finds the most planted changes within ten events at the default false-alarm rate."""
    shares = []
    for kind in kinds:
        strictness = strictness_for(kind, half.calm, FALSE_ALARM_EVERY)
        seen = None if strictness is None else kind.at(half.planted, strictness)
        shares.append(-1.0 if seen is None else float((delays(seen, half.change) <= 10).mean()))
    best = int(np.argmax(shares))
    say(f"  {kinds[best].title}: best of {len(kinds)} with {kinds[best].parameters}, {shares[best]:.2f} within 10")
    return kinds[best]


def candidates(moments: tuple[float, float], quick: bool) -> list[list[Kind]]:
    sd = moments[1]
    some = slice(0, 2) if quick else slice(None)
    return [
        [cusum(moments, p, s, "CUSUM, best of the grid") for p in (0.5, 1.0, 2.0, 10.0) for s in (0.5, 0.75, 1.0)],
        [page_hinkley(sd, m, s) for m in (1, 5, 10)[some] for s in (0.25, 0.5, 0.75, 1.0)],
        [adwin(c, g, keep=k) for c in (1.0, 1.0 / sd) for g in (1, 10)[some] for k in (True, False)],
    ]


def measured(kind: Kind, tuning: Half, test: Half, points: int) -> dict[str, Any]:
    """Return the curve over all thresholds on the test users, and the figures at each of `RATES`."""
    curve = []
    for strictness in np.linspace(0, 1, points).tolist():
        late, calm = delays(kind.at(test.planted, strictness), test.change), kind.at(test.calm, strictness)
        point = {"threshold": kind.threshold(strictness), "every": round(every(calm), 1), "alarms": len(calm.user)}
        curve.append(point | {f"within_{n}": round(float((late <= n).mean()), 4) for n in WITHIN})
    at: list[dict[str, Any]] = []
    for stated in RATES:
        strictness = strictness_for(kind, tuning.calm, stated)
        if strictness is None:
            continue
        calm, late = rate(kind.at(test.calm, strictness)), delays(kind.at(test.planted, strictness), test.change)
        equal = {f"equal_{n}": round(_at_rate(curve, stated, f"within_{n}"), 4) for n in WITHIN}
        at.append(equal | {
            "stated_every": stated, "threshold": kind.threshold(strictness),
            # If even the loosest threshold alarms less often than stated, the rates are not equal.
            "reached": bool(strictness > 0.01), "observed_every": round(calm.every, 1),
            "observed_interval": [round(calm.low, 1), round(calm.high, 1)],
            "true_order_every": round(every(kind.at(test.ordered, strictness)), 1),
            "median_delay": float(np.median(late)) if np.isfinite(np.median(late)) else None,
            "delays": [int(d) if np.isfinite(d) else None for d in late]}
            | {f"within_{n}": round(float((late <= n).mean()), 4) for n in WITHIN})
    return {"title": kind.title, "family": kind.family, "parameters": kind.parameters, "at": at, "curve": curve}


def compare(
    population: Population, *, quick: bool, least: int, seed: int, say: Callable[[str], None],
) -> dict[str, Any]:
    began = time.monotonic()
    count = 150 if quick else 600
    say(f"{population.name}: {len(population.calibration)} users to calibrate, {len(population.others)} to measure")
    tuning = Half.of(population, population.calibration, count, least, seed)
    test = Half.of(population, population.others, count, least, seed + 1)
    never = Detector(0.0, 1.0, 1.0, 0.0, float("inf"))
    quiet = watch(tuning.calm.rows, population.vectors, tuning.calm.settings, never, first=population.first, cooldown=5)
    moments = quiet.mean, quiet.sd
    kinds = [cusum(moments, PRIOR, SLACK, "CUSUM (Freshet)"), cusum(moments, *FORMER, "CUSUM, as before")]
    kinds += [tuned(grid, tuning, say) for grid in candidates(moments, quick)] + [level()]
    results = []
    for kind in kinds:
        say(f"  measuring {kind.title}")
        results.append(measured(kind, tuning, test, 8 if quick else 18))
    _pair(results)
    return {
        "dataset": population.name, "least": least, "first": population.first, "tail": population.tail,
        "planted": count,
        "users": [len(population.calibration), len(population.others)],
        "events_watched": [
            sum(max(0, len(rows) - population.first) for rows in half.calm.rows) for half in (tuning, test)],
        "mean": round(quiet.mean, 4), "sd": round(quiet.sd, 4), "detectors": results,
        "seconds": round(time.monotonic() - began, 1)}


def _pair(results: list[dict[str, Any]]) -> None:
    """Add to each detector's figures Freshet's lead on the same streams, with a 95% interval."""
    shipped = {row["stated_every"]: _late(row) for row in results[0]["at"]}
    for result in results:
        for row in result["at"]:
            ours = shipped.get(row["stated_every"])
            if ours is None or result is results[0]:
                continue
            for n in WITHIN:
                gain = (ours <= n).astype(float) - (_late(row) <= n)
                half = 1.96 * float(gain.std(ddof=1)) / np.sqrt(len(gain))
                row[f"shipped_more_{n}"] = [round(float(gain.mean()), 4), round(float(gain.mean() - half), 4),
                                            round(float(gain.mean() + half), 4)]
    for result in results:
        for row in result["at"]:
            late = _late(row)
            row["detected_by"] = [round(float((late <= n).mean()), 4) for n in range(1, 51)]
            del row["delays"]


def _at_rate(curve: list[dict[str, Any]], stated: float, name: str) -> float:
    """Return the value of the curve at one false alarm per `stated` events of the *test* users."""
    points = sorted((np.log(point["every"]), point[name]) for point in curve)
    return float(np.interp(np.log(stated), [x for x, _ in points], [y for _, y in points]))


def _late(row: dict[str, Any]) -> np.ndarray:
    return np.array([np.inf if d is None else d for d in row["delays"]])


def table(result: dict[str, Any], stated: float = FALSE_ALARM_EVERY) -> str:
    """Return the figures at one rate as a Markdown table."""
    columns = [n for n in WITHIN if n <= result["tail"]]
    lines = ["| detector | false alarm every | true order: every | median delay | "
             + " | ".join(f"within {n}" for n in columns) + " | Freshet's lead, within 10 | within 10, equal rate |",
             "|---|--:|--:|--:|" + "--:|" * (len(columns) + 2)]
    for detector in result["detectors"]:
        row = next((row for row in detector["at"] if row["stated_every"] == stated), None)
        if row is None:
            lines.append(f"| {detector['title']} | rate not reached |" + " |" * (len(columns) + 4))
            continue
        gain = row.get("shipped_more_10")
        shown = "" if gain is None else f"{100 * gain[0]:+.1f} ({100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})"
        low, high = row["observed_interval"]
        delay = "–" if row["median_delay"] is None else f"{row['median_delay']:.0f}"
        shares = " | ".join(f"{row[f'within_{n}']:.0%}" for n in columns)
        name = detector["title"] + ("" if row["reached"] else " ¹")
        lines.append(
            f"| {name} | {row['observed_every']:.0f} ({low:.0f}–{high:.0f}) | {row['true_order_every']:.0f} "
            f"| {delay} | {shares} | {shown} | {row['equal_10']:.0%} |")
    return "\n".join(lines)


def section(report: dict[str, Any]) -> str:
    """Return the generated part of docs/drift.md."""
    parts = []
    for result in report["datasets"]:
        chosen = "; ".join(
            f"{detector['title']}: " + ", ".join(f"{name} {value}" for name, value in detector["parameters"].items())
            for detector in result["detectors"] if detector["parameters"])
        loose = any(not row["reached"] for detector in result["detectors"] for row in detector["at"]
                    if row["stated_every"] == FALSE_ALARM_EVERY)
        note = "\n\n¹ alarms less often than stated even at its loosest threshold." if loose else ""
        parts.append(
            f"### {result['dataset']}\n\n{table(result)}{note}\n\n{result['users'][0]:,} users for tuning and "
            f"calibration, {result['users'][1]:,} others for measurement ({result['events_watched'][1]:,} events "
            f"without drift, {result['planted']} planted changes, {result['least']} to 100 events after the first "
            f"knowledge, which is made at event {result['first']}). {chosen}.\n\n"
            f"![Share of planted changes found against false alarms](drift-{slug(result)}.svg)")
    return "\n\n".join(parts) + f"\n\nriver {report['river']}, revision {report['revision']}."


def slug(result: dict[str, Any]) -> str:
    return str(result["dataset"]).lower().replace(" ", "-")


def write(report: dict[str, Any]) -> None:
    JSON_PATH.write_text(json.dumps(report, indent=1) + "\n")
    for result in report["datasets"]:
        plots.draw(result, ROOT / "docs" / f"drift-{slug(result)}.svg", FALSE_ALARM_EVERY)
    fill(PAGE, "drift", section(report))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.drift.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="synthetic users, takes seconds, saves nothing")
    parser.add_argument("--seed", type=int, default=1,
                        help="seed of halves, shuffles and planted changes (%(default)s)")
    parser.add_argument("--least", type=int, default=1,
                        help="minimum number of events from knowledge to a planted change; results are saved only with "
                             "%(default)s")
    args = parser.parse_args(argv)
    try:
        river = version("river")
    except ModuleNotFoundError:
        sys.exit("benchmarks.drift.run needs river: pip install -c deploy/constraints.txt -e '.[bench]'")
    settings = load()
    try:
        if args.quick:
            everyone = [made_up(args.seed)]
        else:
            everyone = [population("MovieLens-100K", movielens.fetch(settings.home), settings, print, tail=50,
                                   epochs=6, users=450, seed=args.seed)]
            if BEAUTY.is_dir():
                everyone.append(population("Amazon Beauty", BEAUTY, settings, print, tail=20, epochs=4, users=3000,
                                           seed=args.seed))
            else:
                print(f"{BEAUTY} does not exist: MovieLens only")
    except FreshetError as error:
        sys.exit(f"benchmarks.drift.run: {error}")
    report: dict[str, Any] = {
        "revision": revision(), "river": river, "seed": args.seed,
        "datasets": [compare(p, quick=args.quick, least=args.least, seed=args.seed, say=print) for p in everyone]}
    for result in report["datasets"]:
        print(f"\n{result['dataset']} ({result['seconds']} s)\n{table(result)}")
    if not args.quick and args.least == parser.get_default("least"):
        write(report)
        print(f"\nwrote {JSON_PATH.relative_to(ROOT)}, docs/drift.md and its curves")


if __name__ == "__main__":
    main()
