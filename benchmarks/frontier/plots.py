"""The figures of docs/frontier.md: gain and age of knowledge against LLM calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# The colour-blind-safe palette of Okabe and Ito, with a marker per policy.
LOOKS = {
    "freshet": ("#000000", "o"), "nightly": ("#0072B2", "s"), "every-n": ("#E69F00", "^"), "drift": ("#009E73", "D"),
    "judge": ("#CC79A7", "v"), "once": ("#56B4E9", "P"), "always": ("#D55E00", "X")}
# The same policies with the other kind of evidence: same colours, hollow and dashed.
LOOKS |= {f"{name}, {evidence} evidence": LOOKS[name] for name, evidence in (
    ("freshet", "stored"), ("every-n", "current"), ("once", "current"))}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw gain in NDCG@10 over behaviour alone, with 95% intervals, and median age at use, against calls."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.2, 4.2))
    for policy, (colour, marker) in LOOKS.items():
        points = sorted((row for row in rows if row["policy"] == policy and row["calls_per_1000"]),
                        key=lambda row: row["calls_per_1000"])
        if points:
            hollow = {"linestyle": "--", "markerfacecolor": "none"} if "," in policy else {}
            look = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2, "label": policy} | hollow
            _gain(left, points, look)
            known = [point for point in points if point["median_age_events"] is not None]
            right.plot([p["calls_per_1000"] for p in known], [p["median_age_events"] for p in known], **look)
    left.axhline(0, color="0.7", linewidth=0.8)
    left.set(ylabel="gain in NDCG@10 over behaviour alone")
    right.set(ylabel="median age of knowledge at use (the user's events)")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="LLM calls per 1,000 events")
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
    left.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "freshet"  # reproducible file
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _gain(axes: Axes, points: Sequence[dict[str, Any]], look: dict[str, Any]) -> None:
    y = [point["gain"] for point in points]
    spread = [[max(0.0, point["gain"] - point["gain_interval"][0]) for point in points],
              [max(0.0, point["gain_interval"][1] - point["gain"]) for point in points]]
    axes.errorbar([point["calls_per_1000"] for point in points], y, yerr=spread, capsize=2, elinewidth=0.8, **look)
