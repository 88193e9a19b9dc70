"""Judge benchmark: how often harmless knowledge is contradicted, and how soon harmful knowledge is.

    python -m benchmarks.judge.run [--quick]

Compares Freshet's bet with a likelihood ratio and a window mean, and tests pooling over users. Margins are simulated,
see benchmarks/judge/margins.py. Writes the tables and plots of docs/judge.md, and benchmarks/results/judge.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import plots
from benchmarks.judge.margins import BOUND, NULLS, gaussian, planted
from benchmarks.judge.pooled import codeword, false_alarms, mixed, race
from benchmarks.judge.tests import WIDTH, Judges, compare, shares, within
from benchmarks.pages import fill
from streams.detection.trust import HELP, first_crossings
from workers.training.revision import revision

ROOT = Path(__file__).resolve().parents[2]
JSON_PATH, PAGE = ROOT / "benchmarks" / "results" / "judge.json", ROOT / "docs" / "judge.md"
ALPHA = 0.05
STRENGTHS = (0.25, 0.5, 1.0, 2.0)
CALIBRATED_AT = 200


def measure(users: int, events: int, repeats: int, seed: int = 1) -> dict[str, Any]:
    """Return all figures.

    Args:
        users: users per null; at most 2,000 per strength.
        events: the longest horizon.
        repeats: repetitions of the pooled simulations.
    """
    rng = np.random.default_rng(seed)
    at = sorted({round(n) for n in np.geomspace(1, events, 60)} | {20, 50, 100, 200, events})
    judges = Judges.calibrated(gaussian(users, CALIBRATED_AT, rng), BOUND, ALPHA)
    result: dict[str, Any] = {
        "alpha": ALPHA, "users": users, "events": events, "repeats": repeats, "seed": seed, "at": at,
        "window": {"width": WIDTH, "floor": round(judges.floor, 4), "calibrated_at": CALIBRATED_AT}, "nulls": {}}
    for name, null in NULLS.items():
        print(f"harmless: {name}", flush=True)
        result["nulls"][name] = compare(judges, null(users, events, rng), at)
    fewer = min(users, 2000)  # shares found are large, so fewer users suffice
    result["power"] = [_power(judges, strength, fewer, min(events, 1000), at, rng) for strength in STRENGTHS]
    result["help"] = _recovery(fewer, min(events, 1000), rng)
    print("pooled", flush=True)
    result["pooled"] = [
        _medians([race(1000, 400, strength, ALPHA, rng) for _ in range(repeats)], strength)
        for strength in (0.1, *STRENGTHS)]
    result["mixed"] = [
        _medians([mixed(1000, 100, strength, ALPHA, rng) for _ in range(repeats)], strength)
        for strength in STRENGTHS]
    result["codeword"] = [codeword(1280, 100, 1.0, ALPHA, rng) for _ in range(repeats)]
    result["pooled_nulls"] = {"populations": 20 * repeats, "margins": 30_000,
                              "found": false_alarms(20 * repeats, 30_000, ALPHA, rng)}
    return result


def _power(
    judges: Judges, strength: float, users: int, events: int, at: list[int], rng: np.random.Generator,
) -> dict[str, Any]:
    print(f"another user's knowledge, strength {strength:g}", flush=True)
    margins = planted(users, events, strength, rng)
    first = judges.first(margins)
    clipped = np.clip(margins, -BOUND, BOUND)
    return {
        "strength": strength, "mean": round(float(clipped.mean()), 4), "sd": round(float(clipped.std()), 4),
        "users_harmed": round(float((clipped.mean(axis=1) < 0).mean()), 4),
        "found": {name: shares(found, at) for name, found in first.items()},
        "within": {name: {f"{share:g}": within(found, share) for share in (0.5, 0.8, 0.9)}
                   for name, found in first.items()}}


def _recovery(users: int, events: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return how soon the bet on help restores full trust, and how often it does so without a reason."""
    own = first_crossings(planted(users, events, 0.5, rng, wrong=False), BOUND, ALPHA, side=HELP)
    idle = {name: float((first_crossings(-null(users, events, rng), BOUND, ALPHA, side=HELP) >= 0).mean())
            for name, null in NULLS.items()}
    return {"own_knowledge_median": within(own, 0.5), "own_knowledge_90": within(own, 0.9),
            "useless_restored": {name: round(share, 4) for name, share in idle.items()}}


def _medians(runs: list[dict[str, Any]], strength: float) -> dict[str, Any]:
    """Return the median of each figure over runs, and the number of runs that found harm."""
    out: dict[str, Any] = {"strength": strength, "found": sum(run["margins"] > 0 for run in runs), "of": len(runs)}
    for key in runs[0]:
        values = [run[key] for run in runs if key == "mean" or (run["margins"] and run[key] is not None)]
        out[key] = round(float(np.median(values)), 4) if values else None
    return out


def table(result: dict[str, Any]) -> str:
    """Return the generated part of docs/judge.md."""
    last, at = result["events"], result["at"]
    lines = [f"Share of harmless users ever contradicted within 200 and within {last:,} events, level {ALPHA:g}, "
             f"{result['users']:,} users each:", "",
             "| harmless margins | " + " | ".join(plots.STYLE) + " |", "|---|--:|--:|--:|"]
    for name, curves in result["nulls"].items():
        cells = [f"{curves[test][at.index(200)]:.1%} / {curves[test][-1]:.1%}" for test in plots.STYLE]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Another user's knowledge: number of events until 50% and 90% of users are found "
              "(– = not within 1,000):", "",
              "| strength | mean margin | users harmed | " + " | ".join(plots.STYLE) + " |",
              "|--:|--:|--:|--:|--:|--:|"]
    for row in result["power"]:
        cells = [f"{row['within'][test]['0.5'] or '–'} / {row['within'][test]['0.9'] or '–'}"
                 for test in plots.STYLE]
        lines.append(f"| {row['strength']:g} | {row['mean']:+.3f} | {row['users_harmed']:.0%} | "
                     + " | ".join(cells) + " |")
    lines += ["", f"A harmful version given to half of 1,000 users, medians of {result['repeats']} runs:", "",
              "| strength | mean margin | pool: margins | pool: events per user | users found by own test by then | "
              "own test: median events |", "|--:|--:|--:|--:|--:|--:|"]
    for row in result["pooled"]:
        median = f"{row['user_median']:,.0f}" if row["user_median"] else "more than 400"
        lines.append(f"| {row['strength']:g} | {row['mean']:+.3f} | {row['margins']:,.0f} | "
                     f"{row['events_per_user']:.2f} | {row['users_found_by_then']:.1%} | {median} |")
    return "\n".join([*lines, "", *_sentences(result)])


def _sentences(result: dict[str, Any]) -> list[str]:
    highest = max(result["pooled_nulls"]["found"].values())
    runs, helped = result["codeword"], result["help"]
    right = [run for run in runs if run["named"] == ["0:5"]]
    half_harmful = "; ".join(
        f"strength {row['strength']:g}, mean {row['mean']:+.3f}: {row['found']} of {row['of']}"
        + (f" (median {row['margins']:,.0f} margins)" if row["margins"] else "") for row in result["mixed"])
    return [
        f"The pool of a harmless version with {result['pooled_nulls']['margins']:,} margins found harm in at most "
        f"{highest:.1%} of {result['pooled_nulls']['populations']} populations of any of the six kinds, level "
        f"{ALPHA:g}.", "",
        f"A version that harms half of its users and helps the other half is found if it does more harm than good on "
        f"average: {half_harmful}.", "",
        f"A single harmful codeword out of 64 (strength 1, about "
        f"{np.median([run['share_of_users'] for run in runs]):.1%} of users; the other codewords help) was named, and "
        f"no other, in {len(right)} of {len(runs)} runs, after "
        f"{np.median([run['own_margins'] for run in right]) if right else 0:,.0f} margins of its own users (median).",
        "",
        f"With correct knowledge (strength ½) the bet on help restores full trust for half of the users within "
        f"{helped['own_knowledge_median']} events and for 90% within {helped['own_knowledge_90']}. With useless "
        f"knowledge it ever does so for at most {max(helped['useless_restored'].values()):.1%} of users."]


def main() -> None:
    """Measure, print the table, write figures, page and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="takes seconds instead of minutes, writes nothing")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=1_000)
    options = parser.parse_args()
    started = time.perf_counter()
    result = measure(500, 300, 3) if options.quick else measure(options.users, options.events, 10)
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["revision"] = revision()
    print(table(result))
    if not options.quick:
        JSON_PATH.parent.mkdir(exist_ok=True)
        JSON_PATH.write_text(json.dumps(result, indent=1) + "\n")
        plots.draw(result, ROOT / "docs")
        fill(PAGE, "judge", table(result))


if __name__ == "__main__":
    main()
