"""The meter inside every measured process: counts events, records the first one, and exports sampled states.

The cost is the same for all systems: an addition and a set look-up per event (Freshet: per batch). A thread writes the
figures to a file ten times a second, and the benchmark reads the file.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.ingest.fold import State
from schemas.files import write_whole

PERIOD_S = 0.1


def plain(state: State) -> dict[str, Any]:
    """Return a state of the shared fold in the common form for comparison."""
    return {
        "count": state.count, "duplicates": state.duplicates, "too_late": state.too_late,
        "items": list(state.items), "times": list(state.times), "interest": state.interest.hex(),
        "drift": [state.cusum, state.drift_n, state.drift_mean, state.drift_m2]}


class Meter:
    """Counter and sampler of one process.

    Args:
        folder: gets `progress.json` and, once it contains a file `dump`, `states.json`.
        sample: users to keep the newest state of.
        plain: converts a state into the common form for comparison.
    """

    def __init__(self, folder: Path, sample: Iterable[str], plain: Callable[[Any], dict[str, Any]]) -> None:
        self.folder = folder
        self.plain = plain
        self.sample = frozenset(sample)
        self.events = 0
        self.invalid = 0
        self.first: tuple[float, float] | None = None
        self.states: dict[str, Any] = {}
        threading.Thread(target=self._report, daemon=True).start()

    @classmethod
    def here(cls, plain: Callable[[Any], dict[str, Any]] = plain) -> Meter:
        """Return the meter of this process, configured by the environment, and pin the process to its core."""
        core = os.environ.get("BENCH_CORE")
        if core and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {int(core)})
        folder = Path(os.environ["BENCH_FOLDER"])
        return cls(folder, json.loads((folder / "sample.json").read_text()), plain)

    def start(self) -> None:
        """Record the time just before the first event."""
        self.first = (time.time(), time.process_time())

    def note(self, user: str, state: State) -> None:
        """Count one processed event and keep its user's state if sampled."""
        self.events += 1
        if user in self.sample:
            self.states[user] = state

    def wait(self) -> None:
        """Block until the benchmark ends this process, for flows that end by themselves."""
        threading.Event().wait()

    def _report(self) -> None:
        while True:
            time.sleep(PERIOD_S)
            now, cpu = time.time(), time.process_time()
            figures = {"time": now, "cpu": cpu, "events": self.events, "invalid": self.invalid, "first": self.first}
            _write(self.folder / "progress.json", figures)
            if (self.folder / "dump").exists() and not (self.folder / "states.json").exists():
                _write(self.folder / "states.json", {user: self.plain(state) for user, state in self.states.items()})


def _write(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value).encode(), durable=False)
