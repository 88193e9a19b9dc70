"""The demo's output while it runs: a live screen, or one line every five seconds without a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from workers.demo.metrics import REASONS, Metrics, percentiles
from workers.terminal.durations import duration

LINE_EVERY_S = 5.0
REDRAW_EVERY_S = 0.5


@dataclass
class View:
    """Values to show.

    Args:
        done, total: events sent, and events to send, in this stage.
        rate: events per second over the last 5 seconds.
    """

    stage: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    eta_s: float | None = None
    unanswered: int = 0
    lag: dict[str, dict[str, int]] = field(default_factory=dict)
    memory: int = 0
    restarts: int = 0


class Screen:
    """Shows a `View` and `Metrics`. Redraws at most twice a second, so that drawing costs next to nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live: Live | None = None
        self._shown = 0.0

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print a line above the live display."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, view: View, metrics: Metrics, *, force: bool = False) -> None:
        """Show the current state if the last redraw is old enough or `force` is set."""
        now = time.monotonic()
        if not force and now - self._shown < (REDRAW_EVERY_S if self._live else LINE_EVERY_S):
            return
        self._shown = now
        if self._live is not None:
            self._live.update(_panel(view, metrics), refresh=True)
        else:
            self.say(line(view, metrics))


def line(view: View, metrics: Metrics) -> str:
    """Return the state as one line of text."""
    quality = metrics.quality.running()
    fresh = percentiles(metrics.freshness)
    parts = [
        f"{view.stage}: {view.done:,}/{view.total:,}", f"{view.rate:,.0f} events/s", f"{view.unanswered} unanswered",
        "refreshes " + " ".join(f"{reason} {metrics.refreshes[reason]}" for reason in REASONS),
        f"freshness p50 {duration(fresh['p50'])} p99 {duration(fresh['p99'])}",
        f"recommendations {metrics.recommendations:,}",
        f"NDCG@10 fused {quality['fused']['ndcg_at_10']:.4f} reference {quality['reference']['ndcg_at_10']:.4f}",
        f"{view.memory / 2**30:.1f} GiB",
    ]
    return " | ".join(parts)


def _panel(view: View, metrics: Metrics) -> Group:
    head = Table.grid(padding=(0, 2))
    left = f"about {duration(view.eta_s)} left" if view.eta_s is not None else ""
    head.add_row(Text(view.stage, style="bold"), ProgressBar(max(1, view.total), view.done, width=36),
                 f"{view.done:,} of {view.total:,} events", left)
    body = Table.grid(padding=(0, 3))
    for _ in range(2):
        body.add_column(justify="left", style="cyan")
        body.add_column(justify="left")
    quality = metrics.quality.running()
    fresh, response = percentiles(metrics.freshness), percentiles(metrics.response[-2000:])
    waiting = sum(sum(topics.values()) for topics in view.lag.values())
    refreshes = ", ".join(f"{reason.replace('_', ' ')} {metrics.refreshes[reason]:,}" for reason in REASONS)
    lagrange = float(np.median(metrics.lagrange[-500:])) if metrics.lagrange else None
    body.add_row("events/s", f"{view.rate:,.0f}", "recommendations", f"{metrics.recommendations:,}")
    body.add_row("users", f"{len(metrics.users):,}", "unanswered events", f"{view.unanswered:,}")
    body.add_row("lag", f"{waiting:,} records", "refreshes waiting", f"{metrics.refreshes_waiting:,}")
    body.add_row("freshness p50, p99", f"{duration(fresh['p50'])}, {duration(fresh['p99'])}",
                 "event → recommendation p50, p99", f"{duration(response['p50'])}, {duration(response['p99'])}")
    for name, key in (("Recall@10", "recall_at_10"), ("NDCG@10", "ndcg_at_10")):
        fused, reference = quality["fused"][key], quality["reference"][key]
        body.add_row(name, f"{fused:.4f} with knowledge", "", f"{reference:.4f} without")
    body.add_row("μ (median)", "–" if lagrange is None else f"{lagrange:.2f}", "memory",
                 f"{view.memory / 2**30:.1f} GiB" + (f", {view.restarts} restarts" if view.restarts else ""))
    return Group(head, body, Text(f"refreshes: {refreshes}"))
