"""The tables of `benchmarks.quality.run` in docs/results.md."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.quality.ranks import Difference, Name, RankBook
from models.systems.table import SYSTEMS

METRICS = ("recall_at_5", "ndcg_at_5", "recall_at_10", "ndcg_at_10", "harmed_fraction")  # on known items
# Figures beside the headline: key in the page, then group, part and metric in a result's "by".
MORE = {
    "all": ("items", "all", "ndcg_at_10"), "all_recall": ("items", "all", "recall_at_10"),
    "unseen": ("items", "unseen", "ndcg_at_10"), "start": ("sessions", "start", "ndcg_at_10"),
    "within": ("sessions", "within", "ndcg_at_10")}
COUNTS = {"n_all": ("items", "all"), "n_known": ("items", "known"), "n_unseen": ("items", "unseen"),
          "n_start": ("sessions", "start"), "n_within": ("sessions", "within")}
OWN: Name = ("freshet", None)
REFERENCE: Name = ("dense+evidence", None)
STRONGEST: Name = ("dense+evidence", "words")  # without a language model


def entry(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a result of `freshet evaluate` that quality.json keeps."""
    more = {key: result["by"][group][part][metric] for key, (group, part, metric) in MORE.items()}
    counts = {key: int(result["by"][group][part]["n"]) for key, (group, part) in COUNTS.items()}
    return {"metrics": {name: result["metrics"][name] for name in METRICS}, "more": more, "counts": counts}


def summarise(runs: list[dict[str, Any]], books: dict[tuple[str, str], RankBook]) -> list[dict[str, Any]]:
    """Return one row per protocol, system and control, in the order of the table of systems.

    Each row has mean and standard deviation of every figure over seeds, "gain" (its lead over the reference) and
    "behind" (the lead of `freshet`), both in NDCG@10 on known items with intervals, the reference's "lost" hits, and
    "file": NDCG@10 and Recall@10 on all items with the file's order of ties.

    Args:
        runs: entries of quality.json for one data set.
        books: the ranks by protocol and ties.
    """
    groups: dict[tuple[str, str, str | None], list[dict[str, Any]]] = {}
    by_file: dict[tuple[str, str, str | None], list[dict[str, Any]]] = {}
    for run in runs:
        key = run["protocol"], run["system"], run["control"]
        into = {"strict": groups, "file": by_file}.get(run["ties"])
        if into is not None:
            into.setdefault(key, []).append(run)
    order = list(SYSTEMS)
    rows = []
    for (protocol, system, control), group in sorted(
            groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]), item[0][2] or "")):
        book, seeds = books[protocol, "strict"], sorted(run["seed"] for run in group)
        most = max(group, key=lambda run: run["counts"]["n_all"])
        row: dict[str, Any] = {"protocol": protocol, "system": system, "control": control, "seeds": len(group),
                               "counts": most["counts"]}
        for metric in METRICS:
            row[metric], row[f"{metric}_sd"] = _over([run["metrics"][metric] for run in group])
        for key in MORE:
            there = [run for run in group if run["counts"][f"n_{key.partition('_')[0]}"]]
            row[key], row[f"{key}_sd"] = _over([run["more"][key] for run in there])
        file = by_file.get((protocol, system, control), [])
        for key in ("all", "all_recall"):
            row[f"file_{key}"], row[f"file_{key}_sd"] = _over([run["more"][key] for run in file])
        name = system, control
        row["gain"] = book.above(name, REFERENCE, seeds) if name != REFERENCE else None
        row["lost"] = book.lost(name, REFERENCE, seeds) if name != REFERENCE else None
        behind = book.above(name, OWN, seeds) if name != OWN else None
        row["behind"] = behind.reversed() if behind is not None else None
        rows.append(row)
    return rows


def table(dataset: str, rows: list[dict[str, Any]]) -> str:
    """Return Markdown with a table per protocol."""
    return "\n\n".join(
        _table(dataset, name, [row for row in rows if row["protocol"] == name])
        for name in sorted({row["protocol"] for row in rows}))


def _table(dataset: str, protocol: str, rows: list[dict[str, Any]]) -> str:
    counts = max((row["counts"] for row in rows), key=lambda each: each["n_all"])
    sample = min(row["counts"]["n_all"] for row in rows)
    within = counts["n_within"] > 0 and counts["n_start"] > 0
    said = f"{counts['n_all']:,} events, {counts['n_known']:,} of them on known items"
    said += (f", {counts['n_start']:,} of these at session starts" if within
             else ", all at session starts" if counts["n_start"] else ", all within sessions")
    if sample < counts["n_all"]:
        said += f"; rows marked ‡ predict a fixed sample of {sample:,}"
    head = ["system", "seeds", "N@10", "R@10", *(("starts", "within") if within else ()), "unseen", "all",
            "above the reference", "`freshet` above it", "hits lost", "harmed", "file's ties, all: N@10", "R@10"]
    lines = [f"**{dataset}, {protocol.replace('_', '-')}** ({said})", "", f"| {' | '.join(head)} |",
             "|---|" + "--:|" * (len(head) - 1)]
    for row in rows:
        label = f"`{row['system']}`" + (f", {row['control']}" if row["control"] else "")
        label += " ‡" if row["counts"]["n_all"] < counts["n_all"] else ""
        figures = [_figure(row, key) for key in (
            "ndcg_at_10", "recall_at_10", *(("start", "within") if within else ()), "unseen", "all")]
        cells = [label, f"{row['seeds']}", *figures, _difference(row["gain"], row["seeds"]),
                 _difference(row["behind"], row["seeds"]), _share(row["lost"]), _share(row["harmed_fraction"]),
                 _figure(row, "file_all"), _figure(row, "file_all_recall")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _over(values: list[float | None]) -> tuple[float | None, float]:
    """Return mean and standard deviation of the values that exist."""
    there = [value for value in values if value is not None]
    if not there:
        return None, 0.0
    return statistics.mean(there), statistics.stdev(there) if len(there) > 1 else 0.0


def _figure(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return "–"
    sd = f" ± {row[f'{key}_sd']:.4f}".replace("0.", ".") if row["seeds"] > 1 else ""
    return f"{row[key]:.4f}".lstrip("0") + sd


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _difference(difference: Difference | None, seeds: int) -> str:
    if difference is None:
        return "–"
    fewer = f" ({difference.seeds} of {seeds} seeds)" if difference.seeds < seeds else ""
    return f"{difference.mean:+z.4f} [{difference.low:+z.4f}, {difference.high:+z.4f}]{fewer}"  # z: no −0.0000
