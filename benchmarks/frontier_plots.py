"""The figures of docs/frontier.md: gain, and age of knowledge, against LLM calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Colours that colour-blind readers can tell apart (Okabe and Ito), and a marker each.
LOOKS = {
    "freshet": ("#000000", "o"), "nightly": ("#0072B2", "s"), "every-n": ("#E69F00", "^"), "drift": ("#009E73", "D"),
    "judge": ("#CC79A7", "v"), "once": ("#56B4E9", "P"), "always": ("#D55E00", "X")}
# The same policies with the other evidence than in practice: the same colours, hollow and dashed.
LOOKS |= {f"{name}, {evidence} evidence": LOOKS[name] for name, evidence in (
    ("freshet", "stored"), ("every-n", "current"), ("once", "current"))}


def gain(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw gain in NDCG@10 over behaviour alone against calls, with 95% intervals."""
    def draw(axes: Axes, points: list[dict[str, Any]], **look: Any) -> None:
        y = [point["gain"] for point in points]
        spread = [[max(0.0, point["gain"] - point["gain_interval"][0]) for point in points],
                  [max(0.0, point["gain_interval"][1] - point["gain"]) for point in points]]
        axes.errorbar([point["calls_per_1000"] for point in points], y, yerr=spread, capsize=2, elinewidth=0.8, **look)
        axes.axhline(0, color="0.7", linewidth=0.8)

    _draw(rows, path, "gain in NDCG@10 over behaviour alone", draw)


def age(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the median age of knowledge when it is used against calls."""
    def draw(axes: Axes, points: list[dict[str, Any]], **look: Any) -> None:
        known = [point for point in points if point["median_age_events"] is not None]
        axes.plot([p["calls_per_1000"] for p in known], [p["median_age_events"] for p in known], **look)

    _draw(rows, path, "median age of knowledge at use (the user's events)", draw)


def _draw(rows: Sequence[dict[str, Any]], path: Path, label: str, draw: Callable[..., None]) -> None:
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    figure, panels = plt.subplots(1, len(datasets), figsize=(5.6 * len(datasets), 4.2), squeeze=False)
    for axes, dataset in zip(panels[0], datasets, strict=True):
        for policy, (colour, marker) in LOOKS.items():
            points = sorted((row for row in rows if row["dataset"] == dataset and row["policy"] == policy
                             and row["calls_per_1000"]), key=lambda row: row["calls_per_1000"])
            if points:
                hollow = {"linestyle": "--", "markerfacecolor": "none"} if "," in policy else {}
                draw(axes, points, color=colour, marker=marker, markersize=5, linewidth=1.2, label=policy, **hollow)
        axes.set(xscale="log", title=dataset, xlabel="LLM calls per 1,000 events", ylabel=label)
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
        axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "freshet"  # equal figures, equal files
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
