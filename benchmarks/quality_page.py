"""The tables of `benchmarks.quality` in docs/results.md."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from models.evaluation import ndcg, paired_interval
from models.protocols import by_user, protocol
from models.systems import SYSTEMS
from schemas.errors import FreshetError
from workers.evaluate import Evaluator, Wanted

METRICS = ("recall_at_5", "ndcg_at_5", "recall_at_10", "ndcg_at_10", "harmed_fraction")
OWN = "freshet"
Interval = tuple[float, float, float]


def summarise(evaluator: Evaluator, results: list[dict[str, Any]], events: int | None = None) -> list[dict[str, Any]]:
    """Return one row per protocol, system and control, in the order of the table of systems.

    Each has mean and standard deviation over seeds of every metric, "gain" over `dense` and "behind", what `freshet` is
    above it, both in NDCG@10 with their intervals.
    """
    groups: dict[tuple[str, str, str | None], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["protocol"], result["system"], result["control"]), []).append(result)
    order = list(SYSTEMS)
    rows = []
    for (name, system, control), group in sorted(
            groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]), item[0][2] or "")):
        row: dict[str, Any] = {
            "protocol": name, "system": system, "control": control, "seeds": len(group), "n": group[0]["metrics"]["n"]}
        for metric in METRICS:
            values = [run["metrics"][metric] for run in group if run["metrics"][metric] is not None]
            row[metric] = statistics.mean(values) if values else None
            row[f"{metric}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
        seeds = {run["seed"] for run in group}
        for other, key, sign in (("dense", "gain", 1), (OWN, "behind", -1)):
            paired = sorted(seeds & {run["seed"] for run in groups.get((name, other, None), [])})
            if paired and (system, control) != (other, None):
                mean, low, high = above(evaluator, name, (system, control), (other, None), paired, events)
                row[key] = (mean, low, high) if sign > 0 else (-mean, -high, -low)
        rows.append(row)
    return rows


def above(
    evaluator: Evaluator, name: str, one: tuple[str, str | None], other: tuple[str, str | None], seeds: list[int],
    events: int | None = None,
) -> Interval:
    """Return how far one system is above another in NDCG@10, averaged over seeds, and its 95% interval (users drawn).

    Args:
        name: of the protocol.
        one, other: system and control.
        events: as the runs had it.

    Raises:
        FreshetError: the two do not predict the same events.
    """
    gains = []
    for seed in seeds:
        mine, its = (evaluator.ranks(Wanted(system, name, control, seed, events=events))
                     for system, control in (one, other))
        if not np.array_equal(mine["row"], its["row"]):
            raise FreshetError(
                f"{one[0]} and {other[0]} do not predict the same events; run them with the same --events")
        gains.append(ndcg(mine["rank"]) - ndcg(its["rank"]))
    mean = np.mean(gains, axis=0)
    split = protocol(name, evaluator.dataset, evaluator.settings.fit.train_fraction)
    return (float(mean.mean()), *paired_interval(by_user(split, mine["row"], mean)))


def table(dataset: str, rows: list[dict[str, Any]]) -> str:
    """Return Markdown: a table per protocol."""
    parts = []
    for name in sorted({row["protocol"] for row in rows}):
        mine = [row for row in rows if row["protocol"] == name]
        lines = [f"**{dataset}, {name.replace('_', '-')}** ({mine[0]['n']:,.0f} events predicted)", "",
                 "| system | seeds | R@5 | N@5 | R@10 | N@10 | N@10 above `dense` | `freshet` above it | harmed |",
                 "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
        for row in mine:
            label = f"`{row['system']}`" + (f", {row['control']}" if row["control"] else "")
            figures = " | ".join(_figure(row[metric], row[f"{metric}_sd"], row["seeds"]) for metric in METRICS[:4])
            over, behind = (_interval(row.get(key)) for key in ("gain", "behind"))
            harmed = "–" if row["harmed_fraction"] is None else f"{row['harmed_fraction']:.1%}"
            lines.append(f"| {label} | {row['seeds']} | {figures} | {over} | {behind} | {harmed} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _figure(mean: float, sd: float, seeds: int) -> str:
    return f"{mean:.4f}".lstrip("0") + (f" ± {sd:.4f}".replace("0.", ".") if seeds > 1 else "")


def _interval(values: Interval | None) -> str:
    return "–" if values is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*values)
