"""The curves of docs/drift.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STYLE = {
    "CUSUM (Freshet)": ("#0b6e4f", "-", 2.4), "CUSUM, as before": ("#0b6e4f", ":", 1.4),
    "CUSUM, best of the grid": ("#7cb518", "--", 1.4), "Page–Hinkley (river)": ("#d1495b", "-", 1.6),
    "ADWIN (river)": ("#30638e", "-", 1.6), "d above a level": ("#888888", "-.", 1.2)}


def draw(result: dict[str, Any], path: Path, stated: float) -> None:
    """Draw the share found against events per false alarm, and against events since the change at the rate `stated`."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "drift"  # reproducible file
    from matplotlib import pyplot as plt

    within = [n for n in (5, 10, 20) if n <= result["tail"]]
    figure, axes = plt.subplots(1, len(within) + 1, figsize=(4.0 * (len(within) + 1), 4.2), sharey=True)
    for axis, n in zip(axes, within, strict=False):
        for detector in result["detectors"]:
            colour, line, width = STYLE[detector["title"]]
            # With fewer than 20 alarms the rate is too uncertain.
            points = sorted((p["every"], p[f"within_{n}"]) for p in detector["curve"] if p["alarms"] >= 20)
            axis.plot([p[0] for p in points], [p[1] for p in points], color=colour, ls=line, lw=width)
        axis.set(xscale="log", xlabel="events per false alarm", title=f"found within {n} events", ylim=(0, 1))
        axis.set_xlim(15, 1500)
        axis.axvline(stated, color="#cccccc", lw=1, zorder=0)
    axis = axes[-1]
    for detector in result["detectors"]:
        colour, line, width = STYLE[detector["title"]]
        for row in detector["at"]:
            if row["stated_every"] == stated:
                detected = row["detected_by"][: result["tail"]]
                axis.plot(range(1, len(detected) + 1), detected, color=colour, ls=line, lw=width,
                          label=detector["title"])
    axis.set(xlabel="events since the change", title=f"at one false alarm in {stated:.0f} events")
    axes[0].set_ylabel("share of planted changes found")
    for each in axes:
        each.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="lower right")
    figure.suptitle(result["dataset"])
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
