"""The generated part of docs/frontier.md, and benchmarks/results/frontier.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson

from benchmarks import frontier_plots
from benchmarks.frontier_points import ROOT, Point, grouped, pooled

JSON_PATH = ROOT / "benchmarks" / "results" / "frontier.json"
PAGE = ROOT / "docs" / "frontier.md"
BEGIN, END = "<!-- frontier: begin -->", "<!-- frontier: end -->"
Comparisons = dict[float | None, dict[str, Any]]


def tables(points: list[Point], comparisons: dict[str, Comparisons]) -> str:
    """Return Markdown: per data set all points, and `freshet` against the others."""
    parts = []
    for dataset, compared in comparisons.items():
        own = [point for point in points if point.figures["dataset"] == dataset]
        first = own[0].figures
        seeds = sorted({point.figures["seed"] for point in own})
        revisions = sorted({point.figures["revision"] for point in own})
        parts += [
            f"### {dataset}\n\n{first['events']:,} events played, {first['predicted']:,} of them predicted; "
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; revision {', '.join(revisions)}.",
            _points(own), _against(compared)]
    return "\n\n".join(parts)


def _points(points: list[Point]) -> str:
    lines = ["| policy | budget | calls per 1,000 | NDCG@10 | gain over behaviour alone (95%) | median age | LLM s | "
             "bytes per user |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    rows = [pooled(group) for group in grouped(points).values()]
    for row in sorted(rows, key=lambda row: (row["budget"] or 0, row["calls_per_1000"])):
        low, high = row["gain_interval"]
        budget = "" if row["budget"] is None else f"{row['budget']:g}"
        lines.append(
            f"| {row['policy']} | {budget} | "
            f"{row['calls_per_1000']:.1f} | {row['ndcg_at_10']:.4f} | {row['gain']:+.4f} ({low:+.4f} to {high:+.4f}) | "
            f"{age(row['median_age_s'], row['median_age_events'])} | {row['llm_seconds']:,.0f} | "
            f"{row['store_bytes_per_user']:,.0f} |")
    return "\n".join(lines)


def _against(compared: Comparisons) -> str:
    lines = ["| `freshet` at | against | its calls | difference in NDCG@10 (95%) | |", "|--:|---|--:|--:|---|"]
    for budget, row in compared.items():
        for policy, other in row["against"].items():
            low, high = other["interval"]
            verdict = "above" if low > 0 else "below" if high < 0 else "not told apart"
            lines.append(
                f"| {budget or 0:g} | {policy} | {other['calls_per_1000']:.1f} | {other['difference']:+.4f} "
                f"({low:+.4f} to {high:+.4f}) | {verdict}{'' if other['equal_calls'] else ', other calls'} |")
    lines += ["", "| `freshet` at | share of the gain of `always` (95%) | share of its calls |", "|--:|--:|--:|"]
    for budget, row in compared.items():
        kept = row["of_always"]
        share = "`always` gains nothing" if kept["share"] is None else (
            f"{kept['share']:.0%} ({kept['interval'][0]:.0%} to {kept['interval'][1]:.0%})")
        lines.append(f"| {budget or 0:g} | {share} | {kept['calls_share']:.1%} |")
    return "\n".join(lines)


def age(seconds: float | None, events: float | None) -> str:
    """Return an age in words: event time, and the user's events."""
    if seconds is None or events is None:
        return "none used"
    unit, size = next(((u, s) for u, s in (("d", 86_400), ("h", 3600), ("min", 60)) if seconds >= s), ("s", 1))
    return f"{seconds / size:.1f} {unit}, {events:g} events"


def write(rows: list[dict[str, Any]], points: list[Point], compare: Callable[[list[Point]], Comparisons]) -> None:
    """Save the points, and put tables and plots into the documentation.

    Points of data sets that were not played this time stay in the JSON file; the page shows what was played.
    """
    played = {row["dataset"] for row in rows}
    earlier = orjson.loads(JSON_PATH.read_bytes()) if JSON_PATH.is_file() else []
    JSON_PATH.parent.mkdir(exist_ok=True)
    JSON_PATH.write_text(json.dumps([row for row in earlier if row["dataset"] not in played] + rows, indent=1) + "\n")
    drawn = [pooled(group) for dataset in sorted(played) for group in grouped(
        [point for point in points if point.figures["dataset"] == dataset]).values()]
    frontier_plots.gain(drawn, PAGE.with_name("frontier-gain.svg"))
    frontier_plots.age(drawn, PAGE.with_name("frontier-age.svg"))
    text = tables(points, {dataset: compare([point for point in points if point.figures["dataset"] == dataset])
                           for dataset in sorted(played)})
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(
        f"{before}{BEGIN}\n![Gain against LLM calls](frontier-gain.svg)\n\n"
        f"![Median age of knowledge against LLM calls](frontier-age.svg)\n\n{text}\n{END}{after}")
