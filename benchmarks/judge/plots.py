"""The curves of docs/judge.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.judge.tests import BETTING, RATIO, WINDOW

STYLE = {BETTING: ("#0b6e4f", "-", 2.2), RATIO: ("#d1495b", "--", 1.6), WINDOW: ("#30638e", "-.", 1.6)}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Write judge-false-alarms.svg, judge-power.svg and judge-pooled.svg into `folder`."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "judge"  # reproducible file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    for axis, test in zip(axes, STYLE, strict=True):
        for name, curves in result["nulls"].items():
            axis.plot(result["at"], curves[test], label=name, lw=1.5)
        axis.axhline(result["alpha"], color="black", lw=1, ls=":")
        axis.set(xscale="log", xlabel="events of a user", title=test, ylim=(0, 0.4))
    axes[0].set_ylabel("share of users ever contradicted")
    axes[0].legend(fontsize=8, loc="upper left", title="harmless margins", title_fontsize=8)
    _save(figure, folder / "judge-false-alarms.svg", f"False alarms at level {result['alpha']:g} (dotted)")

    figure, axes = plt.subplots(1, len(result["power"]), figsize=(3.6 * len(result["power"]), 4), sharey=True)
    for axis, row in zip(axes, result["power"], strict=True):
        for test, (colour, line, width) in STYLE.items():
            axis.plot(result["at"], row["found"][test], color=colour, ls=line, lw=width, label=test)
        axis.set(xscale="log", xlabel="events of a user", ylim=(0, 1.02),
                 title=f"strength {row['strength']:g}, mean margin {row['mean']:+.2f}")
    axes[0].set_ylabel("share of users found")
    axes[0].legend(fontsize=8)
    _save(figure, folder / "judge-power.svg", "Knowledge of another user")

    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    rows = result["pooled"]
    means = [-row["mean"] for row in rows]
    axis.plot(means, [row["user_median"] or float("nan") for row in rows], "o-", color="#d1495b",
              label="a single user's own test (median)")
    axis.plot(means, [row["events_per_user"] for row in rows], "s-", color="#0b6e4f", label="the version's pool")
    axis.set(xscale="log", yscale="log", xlabel="harm: mean margin below 0, in units of B",
             ylabel="events per user until found")
    axis.legend()
    _save(figure, folder / "judge-pooled.svg", "A harmful version given to half of the users")


def _save(figure: Any, path: Path, title: str) -> None:
    from matplotlib import pyplot as plt

    for axis in figure.axes:
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
