"""Stages of a long job: progress bars with the time left, or lines without a terminal. A stage that hangs is stopped.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from schemas.errors import StalledError

Step = Callable[..., None]
"""step(done, total, note="") reports the progress of a stage."""

LINE_EVERY_S = 5.0
GIVE_UP_S = 20.0  # seconds after which a stage that hangs in native code is ended with the process


class Stages:
    """Shows stages one after the other and records their times.

    Args:
        console: where to print; None = standard output, but only in the first process under `torchrun`.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=os.environ.get("RANK", "0") != "0")
        self.times: dict[str, dict[str, Any]] = {}
        self._bars = Progress(
            TextColumn("{task.description:<18}"), BarColumn(28), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=self.console, disable=not self.console.is_terminal)
        self._name = ""
        self._limit_s = 0.0
        self._moved = time.monotonic()
        self._stalled = False
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._watch_for_stalls, name="stall-watch", daemon=True)

    def __enter__(self) -> Stages:
        self._bars.start()
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._closing.set()
        self._bars.stop()

    @contextmanager
    def stage(self, name: str, stall_s: float) -> Iterator[Step]:
        """Run a stage; yields the function that reports progress.

        Raises:
            StalledError: no progress was reported for `stall_s` seconds.
        """
        began = time.monotonic()
        self._name, self._limit_s, self._moved = name, stall_s, began
        bar = self._bars.add_task(name, total=None, note="")
        try:
            yield self._step(bar, name, began)
        except KeyboardInterrupt:
            if self._stalled:
                raise StalledError(f"{name}: no progress for {stall_s:.0f} s") from None
            raise
        finally:
            self._limit_s = 0.0
        seconds = time.monotonic() - began
        self.times[name] = {"seconds": round(seconds, 2), "reused": False}
        self._bars.update(bar, total=1, completed=1)
        if self._bars.disable:
            self.say(f"{name}: done in {seconds:.1f} s")

    def reused(self, name: str) -> None:
        """Report that a stage's result is reused."""
        self.times[name] = {"seconds": 0.0, "reused": True}
        self.say(f"{name}: unchanged, reused")

    def _step(self, bar: TaskID, name: str, began: float) -> Step:
        shown = began

        def _report(done: float, total: float, note: str = "") -> None:
            nonlocal shown
            now = self._moved = time.monotonic()
            self._bars.update(bar, completed=done, total=total, note=note)
            if self._bars.disable and now - shown >= LINE_EVERY_S:
                shown = now
                left = (now - began) / done * (total - done) if done else 0.0
                self.say(f"{name}: {done:,.0f}/{total:,.0f}, about {left:.0f} s left {note}".rstrip())

        return _report

    def say(self, text: str) -> None:
        """Print a line above the progress bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _watch_for_stalls(self) -> None:
        while not self._closing.wait(1.0):
            if not self._limit_s or time.monotonic() - self._moved < self._limit_s:
                continue
            self._stalled, why = True, f"{self._name}: no progress for {self._limit_s:.0f} s"
            _thread.interrupt_main()
            if not self._closing.wait(GIVE_UP_S):
                sys.stderr.write(f"freshet: {why}\n")
                os._exit(1)  # the stage hangs in native code, which no exception can interrupt
            return


STALL_S = 1800.0  # seconds without progress; an epoch of 200,000 events takes minutes on two slow cores


class TrainingStages:
    """Turns progress reports of training into stages, one after the other.

    Args:
        stages: shows them.
        opened: closes the last stage.
    """

    def __init__(self, stages: Stages, opened: ExitStack) -> None:
        self._stages, self._opened = stages, opened
        self._name = ""
        self._step: Step = lambda *_: None

    def __call__(self, name: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """Report the progress of stage `name`."""
        if name != self._name:
            self.close()
            self._name, self._step = name, self._opened.enter_context(self._stages.stage(name, STALL_S))
        shown = {key: value for key, value in metrics.items() if key in {"ndcg_at_10", "nll", "loss"}}
        self._step(done, total, ", ".join(f"{key} {value:.4f}" for key, value in shown.items()))

    def close(self) -> None:
        """End the current stage. Call it before work that is not part of it."""
        self._opened.close()
        self._name = ""
