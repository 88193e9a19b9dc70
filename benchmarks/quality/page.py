"""The tables of `benchmarks.quality.run` in docs/results.md."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.quality.ranks import Difference, RankBook
from models.systems.table import SYSTEMS

METRICS = ("recall_at_5", "ndcg_at_5", "recall_at_10", "ndcg_at_10", "harmed_fraction")
OWN = "freshet"


def summarise(runs: list[dict[str, Any]], books: dict[str, RankBook]) -> list[dict[str, Any]]:
    """Return one row per protocol, system and control, in the order of the table of systems.

    Each row has mean and standard deviation of every metric over seeds, "gain" (the lead over `dense`) and "behind"
    (the lead of `freshet`), both in NDCG@10 with intervals over the seeds with stored ranks.

    Args:
        runs: entries of quality.json for one data set.
        books: the ranks by protocol.
    """
    groups: dict[tuple[str, str, str | None], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["protocol"], run["system"], run["control"]), []).append(run)
    order = list(SYSTEMS)
    rows = []
    for (protocol, system, control), group in sorted(
            groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]), item[0][2] or "")):
        book, seeds = books[protocol], sorted(run["seed"] for run in group)
        row: dict[str, Any] = {
            "protocol": protocol, "system": system, "control": control, "seeds": len(group),
            "n": max(book.events((system, control), seed) for seed in seeds)}
        for metric in METRICS:
            values = [run["metrics"][metric] for run in group if run["metrics"][metric] is not None]
            row[metric] = statistics.mean(values) if values else None
            row[f"{metric}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
        for other, key in (("dense", "gain"), (OWN, "behind")):
            lead = book.above((system, control), (other, None), seeds) if (system, control) != (other, None) else None
            if lead is not None:
                row[key] = lead if key == "gain" else lead.reversed()
        rows.append(row)
    return rows


def table(dataset: str, rows: list[dict[str, Any]]) -> str:
    """Return Markdown with a table per protocol."""
    parts = []
    for name in sorted({row["protocol"] for row in rows}):
        group = [row for row in rows if row["protocol"] == name]
        n = max(row["n"] for row in group)
        lines = [f"**{dataset}, {name.replace('_', '-')}** ({n:,} events predicted)", "",
                 "| system | seeds | R@5 | N@5 | R@10 | N@10 | N@10 above `dense` | `freshet` above it | harmed |",
                 "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
        for row in group:
            label = f"`{row['system']}`" + (f", {row['control']}" if row["control"] else "")
            figures = " | ".join(_figure(row[metric], row[f"{metric}_sd"], row["seeds"]) for metric in METRICS[:4])
            over, behind = (_difference(row.get(key), row["seeds"]) for key in ("gain", "behind"))
            harmed = "–" if row["harmed_fraction"] is None else f"{row['harmed_fraction']:.1%}"
            lines.append(f"| {label} | {row['seeds']} | {figures} | {over} | {behind} | {harmed} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _figure(mean: float, sd: float, seeds: int) -> str:
    return f"{mean:.4f}".lstrip("0") + (f" ± {sd:.4f}".replace("0.", ".") if seeds > 1 else "")


def _difference(difference: Difference | None, seeds: int) -> str:
    if difference is None:
        return "–"
    fewer = f" ({difference.seeds} of {seeds} seeds)" if difference.seeds < seeds else ""
    return f"{difference.mean:+z.4f} [{difference.low:+z.4f}, {difference.high:+z.4f}]{fewer}"  # z: no −0.0000
