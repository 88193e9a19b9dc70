"""The plots of `benchmarks.quality.run`: NDCG@10 by system with a panel per data set and protocol, and λ by epoch."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from models.systems.table import SYSTEMS

LINES = {"constraint": "C on held-out events, nats", "allowed": "ε_C", "lagrange": "λ",
         "code_use": "use of codes, mean", "code_use_least": "use of codes, minimum"}
PANELS = (("constraint", "allowed"), ("lagrange",), ("code_use", "code_use_least"))


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Write the plot of NDCG@10 on known items, strict ties.

    Bars are means over seeds, lines standard deviations, dots single runs, pale bars controls.
    """
    runs = [run for run in runs if run["ties"] == "strict"]
    panels = sorted({(run["dataset"], run["protocol"]) for run in runs})
    if not panels:
        return
    order = list(SYSTEMS)
    names = sorted({(run["system"], run["control"] or "") for run in runs},
                   key=lambda name: (order.index(name[0]), name[1]))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.2 + 3.2 * len(panels), 1.4 + 0.3 * len(names)), squeeze=False, sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        for at, (system, control) in enumerate(names):
            values = [run["metrics"]["ndcg_at_10"] for run in runs
                      if (run["dataset"], run["protocol"]) == panel and run["system"] == system
                      and (run["control"] or "") == control]
            if values:
                sd = statistics.stdev(values) if len(values) > 1 else 0.0
                axis.barh(at, statistics.mean(values), xerr=sd, color="#9ecae1" if control else "#3182bd", height=0.7)
                axis.plot(values, [at] * len(values), "k.", markersize=3)
        axis.set_title(f"{panel[0]}\n{panel[1].replace('_', '-')}", fontsize=9)
        axis.set_xlabel("NDCG@10, known items")
    labels = [f"{system}, {control}" if control else system for system, control in names]
    axes[0][0].set_yticks(range(len(names)), labels)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "quality"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_training(results: list[dict[str, Any]], path: Path) -> None:
    """Plot the harm constraint during training: C, its limit, λ and the use of codes by epoch, a row per result.

    Args:
        results: results of `freshet evaluate`; those without λ in the training history are skipped.
    """
    shown = [
        result for result in results if any("lagrange" in entry for entry in result["training"].get("history", []))]
    if not shown:
        return
    figure, axes = plt.subplots(len(shown), 3, figsize=(9.5, 2.1 * len(shown) + 0.5), squeeze=False, sharex=True)
    for row, result in zip(axes, shown, strict=True):
        history = result["training"]["history"]
        for axis, lines in zip(row, PANELS, strict=True):
            for name in lines:
                points = [(entry["epoch"], entry[name]) for entry in history if name in entry]
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=LINES[name])
            if axis.lines:
                axis.legend(fontsize=7)
            axis.set_ylim(bottom=0)
        title = (result["system"], result["dataset"], result["protocol"].replace("_", "-"))
        row[0].set_ylabel("\n".join(title), fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("epoch of knowledge")
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "quality"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
