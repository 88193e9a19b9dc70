"""The report's plots, as PNG bytes. Each function takes measurements and returns a draw function.

A draw function returns False if there is nothing to draw.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from schemas.errors import FreshetError
from workers.demo.metrics import REASONS, Metrics

mpl.use("Agg")
WITH, WITHOUT = "#0b6e99", "#b0b7bd"
COLOURS = {"cold_start": "#4c78a8", "drift": "#f2a541", "contradiction": "#d1495b", "stale": "#7b8794"}


def png(draw: Callable[[Axes], bool], height: float = 2.9) -> str:
    """Return a plot as a data URI, or "" if there is nothing to draw."""
    figure = Figure(figsize=(8.2, height), layout="constrained")
    axes = figure.subplots()
    if not draw(axes):
        return ""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def save(draw: Callable[[Axes], bool], path: Path, height: float = 3.2) -> None:
    """Write a plot to a file; the file extension selects the format.

    Raises:
        FreshetError: there is nothing to draw yet, or the format is unknown.
    """
    figure = Figure(figsize=(8.2, height), layout="constrained")
    axes = figure.subplots()
    if not draw(axes):
        raise FreshetError(f"{path} was not written: there is nothing to draw yet")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise FreshetError(f"{path}: {error}") from error


def throughput(metrics: Metrics) -> Callable[[Axes], bool]:
    """Plot events per second, unanswered events and lag over time."""

    def _draw(axes: Axes) -> bool:
        if len(metrics.samples) < 3:
            return False
        at = np.array([sample.at for sample in metrics.samples])
        events = np.array([sample.events for sample in metrics.samples], dtype=float)
        axes.plot(at[1:], np.diff(events) / np.maximum(np.diff(at), 1e-3), color=WITH, label="events/s")
        axes.set_xlabel("seconds since the stream began")
        axes.set_ylabel("events/s")
        other = axes.twinx()
        other.plot(at, [sample.unanswered for sample in metrics.samples], color="#d1495b", label="unanswered")
        other.plot(at, [sum(sample.lag.values()) for sample in metrics.samples], color=WITHOUT, label="lag, all groups")
        other.set_ylabel("records")
        lines = [*axes.get_lines(), *other.get_lines()]
        axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right", fontsize=8)
        return True

    return _draw


def refreshes(metrics: Metrics) -> Callable[[Axes], bool]:
    """Plot cumulative refreshes by reason over time."""

    def _draw(axes: Axes) -> bool:
        if len(metrics.samples) < 2 or not metrics.refreshes:
            return False
        at = [sample.at for sample in metrics.samples]
        axes.stackplot(at, *[[sample.refreshes.get(reason, 0) for sample in metrics.samples] for reason in REASONS],
                       labels=[reason.replace("_", " ") for reason in REASONS],
                       colors=[COLOURS[reason] for reason in REASONS])
        axes.set_xlabel("seconds since the stream began")
        axes.set_ylabel("refreshes so far")
        axes.legend(loc="upper left", fontsize=8)
        return True

    return _draw


def histogram(values: list[float], label: str) -> Callable[[Axes], bool]:
    """Plot a histogram of the positive `values` on a logarithmic axis, with p50 and p99."""

    def _draw(axes: Axes) -> bool:
        positive = np.array([value for value in values if value > 0])
        if len(positive) < 2:
            return False
        low, high = positive.min(), max(positive.max(), positive.min() * 1.1)
        axes.hist(positive, bins=np.geomspace(low, high, 50).tolist(), color=WITH)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for percent in (50, 99):
            value = float(np.percentile(positive, percent))
            axes.axvline(value, color="#d1495b", linewidth=1)
            axes.text(value, axes.get_ylim()[1] * 0.92, f" p{percent} {value:.3g}", fontsize=8, color="#d1495b")
        axes.set_xlabel(label)
        axes.set_ylabel("number")
        return True

    return _draw


def running_quality(metrics: Metrics) -> Callable[[Axes], bool]:
    """Plot the running mean of NDCG@10 with and without knowledge."""

    def _draw(axes: Axes) -> bool:
        quality = metrics.quality
        if quality.n < 20:
            return False
        number = np.arange(1, quality.n + 1)
        skip = min(200, quality.n // 5)  # the first means are noise and would stretch the axis
        for values, label, colour in ((quality.served, "with knowledge", WITH),
                                      (quality.reference, "behaviour alone", "#7b8794")):
            axes.plot(number[skip:], (np.cumsum(values) / number)[skip:], color=colour, label=label)
        axes.set_xlabel("predicted events")
        axes.set_ylabel("NDCG@10 so far")
        axes.legend(fontsize=8)
        return True

    return _draw


def by_group(groups: dict[str, Any], label: str) -> Callable[[Axes], bool]:
    """Plot NDCG@10 with and without knowledge for groups of events."""

    def _draw(axes: Axes) -> bool:
        shown = {name: part for name, part in groups.items() if part["n"]}
        if not shown:
            return False
        x = np.arange(len(shown))
        axes.bar(x - 0.2, [part["reference_ndcg_at_10"] for part in shown.values()], 0.38, color=WITHOUT,
                 label="behaviour alone")
        axes.bar(x + 0.2, [part["fused_ndcg_at_10"] for part in shown.values()], 0.38, color=WITH,
                 label="with knowledge")
        axes.set_xticks(x, [f"{name}\n({part['n']:,} events)" for name, part in shown.items()], fontsize=8)
        axes.set_xlabel(label)
        axes.set_ylabel("NDCG@10")
        axes.legend(fontsize=8)
        return True

    return _draw


def uplift(figures: dict[str, Any]) -> Callable[[Axes], bool]:
    """Plot an experiment's uplift and its confidence sequence by number of users.

    `figures` comes from `RunningExperiment.figures`.
    """

    def _draw(axes: Axes) -> bool:
        path = [point for point in figures["path"] if point["uplift"] is not None]
        if len(path) < 2:
            return False
        users = [point["users"] for point in path]
        axes.fill_between(users, [point["low"] for point in path], [point["high"] for point in path], color=WITH,
                          alpha=0.2, label=f"{1 - figures['alpha']:.0%} confidence sequence")
        axes.plot(users, [point["uplift"] for point in path], color=WITH, label="treatment − control")
        axes.axhline(0, color="#7b8794", linewidth=1)
        # The interval of the first users is so wide that it would flatten the rest of the plot.
        shown = path[len(path) // 4]
        axes.set_ylim(1.1 * min(shown["low"], -1e-3), 1.1 * max(shown["high"], 1e-3))
        axes.set_xlabel("users, in order of entry")
        axes.set_ylabel(f"uplift in {figures['reward']}")
        axes.legend(fontsize=8)
        return True

    return _draw
