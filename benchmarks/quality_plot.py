"""The plot of quality.json: NDCG@10 by system, a panel per data set and protocol."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Write the plot; bars are means over seeds, lines their standard deviation, dots single runs, controls pale."""
    panels = sorted({(run["dataset"], run["protocol"]) for run in runs})
    if not panels:
        return
    names = sorted({(run["system"], run["control"] or "") for run in runs})
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
        axis.set_xlabel("NDCG@10")
    labels = [f"{system}, {control}" if control else system for system, control in names]
    axes[0][0].set_yticks(range(len(names)), labels)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "quality"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
