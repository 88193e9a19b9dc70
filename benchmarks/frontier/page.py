"""The generated parts of docs/frontier.md, and benchmarks/results/frontier.json."""

from __future__ import annotations

import json
from typing import Any

import orjson

from benchmarks.frontier import plots
from benchmarks.frontier.points import ROOT, Point, grouped, pooled
from benchmarks.pages import fill
from workers.terminal.durations import duration

JSON_PATH = ROOT / "benchmarks" / "results" / "frontier.json"
PAGE = ROOT / "docs" / "frontier.md"
Comparisons = dict[float | None, dict[str, Any]]


def table(points: list[Point], compared: Comparisons) -> str:
    """Return Markdown for one data set: all points, and `freshet` compared with the other policies."""
    first = points[0].figures
    name = first["dataset"]
    seeds = sorted({point.figures["seed"] for point in points})
    revisions = sorted({point.figures["revision"] for point in points})
    return "\n\n".join([
        f"### {name}", f"![Gain, and age of knowledge, against LLM calls]({plot_of(name)})",
        f"{first['events']:,} events played, {first['predicted']:,} of them predicted; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; revision {', '.join(revisions)}.",
        _points(points), _against(compared)])


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
            verdict = "above" if low > 0 else "below" if high < 0 else "no clear difference"
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
    """Return an age as text: event time, and number of the user's events."""
    if seconds is None or events is None:
        return "none used"
    return f"{duration(seconds)}, {events:g} events"


def plot_of(dataset: str) -> str:
    """Return the file name of a data set's figure, in the page's folder."""
    return f"frontier-{dataset}.svg"


def write(rows: list[dict[str, Any]], points: list[Point], text: str) -> None:
    """Save the points, plot and text of one data set; keep those of other data sets."""
    dataset = points[0].figures["dataset"]
    earlier = orjson.loads(JSON_PATH.read_bytes()) if JSON_PATH.is_file() else []
    JSON_PATH.parent.mkdir(exist_ok=True)
    JSON_PATH.write_text(json.dumps([row for row in earlier if row["dataset"] != dataset] + rows, indent=1) + "\n")
    plots.draw([pooled(group) for group in grouped(points).values()], PAGE.with_name(plot_of(dataset)))
    fill(PAGE, f"frontier {dataset}", text)
