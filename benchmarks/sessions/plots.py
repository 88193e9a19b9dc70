"""The plots of docs/sessions.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"fresh": "#0b6e4f", "stale": "#d1495b", "another": "#8d6a9f", "none": "#777777"}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Write sessions.svg and sessions-frontier.svg into `folder`."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sessions"  # reproducible file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(result["rows"]), figsize=(11, 3.6), sharex=True)
    for axis, (kind, rows) in zip(axes, result["rows"].items(), strict=True):
        shown = [row for row in rows if row["row"] != "none"][::-1]
        for at, row in enumerate(shown):
            gain, colour = row["gain"], COLOURS[row["row"].split()[0].strip(",")]
            axis.plot([gain["low"], gain["high"]], [at, at], color=colour, lw=2)
            axis.plot(gain["mean"], at, "o", color=colour)
        axis.axvline(0, color="black", lw=1, ls=":")
        axis.set_yticks(range(len(shown)), [row["row"] for row in shown])
        axis.set(title=f"{kind} moments ({rows[0]['moments']:,})", xlabel="gain in NDCG@10 over no text, 95%")
    _save(figure, folder / "sessions.svg")

    figure, axis = plt.subplots(figsize=(7.5, 4.4))
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in result["policies"]:
        groups.setdefault(row["policy"].split(",")[0].split(" ")[0], []).append(row)
    for name, rows in groups.items():
        ordered = sorted(rows, key=lambda row: row["calls"])
        axis.plot([row["calls"] for row in ordered], [row["guarded"]["mean"] for row in ordered], "o-", label=name,
                  lw=1.5, ms=4)
    axis.axhline(0, color="black", lw=1, ls=":")
    axis.set(xlabel="calls after the first text", ylabel="gain in NDCG@10 at later moments, judge and region")
    axis.legend(fontsize=8)
    _save(figure, folder / "sessions-frontier.svg")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    for axis in figure.axes:
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
