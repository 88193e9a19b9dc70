"""A role's files under `run/`: one while it is ready, and one with its counters, written once a second."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from schemas.files import write_whole
from schemas.liveness import ready_file

_EVERY_S = 1.0


class Progress:
    """Counters of one role, in `<role>.json`, and its `<role>.ready` file. Safe to read from several threads."""

    def __init__(self, home: Path, role: str, counters: Callable[[], dict[str, Any]] = dict) -> None:
        self._ready = ready_file(home, role)
        self._file = self._ready.with_suffix(".json")
        self._counters = counters
        self._written = 0.0
        self._lock = threading.Lock()
        self.moves = 0
        """Goes up whenever something was finished; the watchdog looks for a standstill."""
        self.busy = False
        self.waits_for = ""
        self._fields: dict[str, Any] = {
            "role": role, "pid": os.getpid(), "started_at": time.time(), "ready_at": None, "processed": 0,
            "produced": 0, "dead_letters": 0, "batches": 0, "last_batch": 0, "last_batch_s": None,
            "last_batch_at": None, "lag": None}

    def clear(self) -> None:
        """Remove the ready file that an earlier process of this role may have left."""
        self._ready.parent.mkdir(parents=True, exist_ok=True)
        self._ready.unlink(missing_ok=True)
        self.write(None, force=True)

    def ready(self) -> None:
        """Write the ready file: the role has its partitions."""
        self._fields["ready_at"] = self._fields["ready_at"] or time.time()
        self.moves += 1
        self._ready.write_text(str(os.getpid()))

    @property
    def is_ready(self) -> bool:
        """Whether `ready` was called."""
        return self._fields["ready_at"] is not None

    def in_hand(self, records: int) -> None:
        """Note that a batch was taken."""
        self._fields["last_batch"] = records
        self.busy = True

    def produced(self, records: int) -> None:
        """Note outputs that are on the broker."""
        self._fields["produced"] += records
        self.moves += 1

    def buried(self) -> None:
        """Note a dead letter."""
        self._fields["dead_letters"] += 1
        self.moves += 1

    def done(self, records: int, seconds: float) -> None:
        """Note that a batch is committed."""
        self._fields["processed"] += records
        self._fields["batches"] += 1
        self._fields["last_batch_s"] = round(seconds, 4)
        self._fields["last_batch_at"] = time.time()
        self.moves += 1
        self.busy = False

    def waiting(self, what: str, lag: int | None) -> None:
        """Note what the role waits for ("" = nothing): waiting for the store is not a stall."""
        self.waits_for = what
        self.moves += 1
        if what:
            self.write(lag, force=True)

    def write(self, lag: int | None, force: bool = False) -> None:
        """Write the counters if a second has passed."""
        now = time.monotonic()
        with self._lock:
            if not force and now - self._written < _EVERY_S:
                return
            self._written = now
            if lag is not None:
                self._fields["lag"] = lag
            fields = self._fields | {"waits_for": self.waits_for, "updated_at": time.time()} | self._counters()
            write_whole(self._file, orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY), durable=False)

    def end(self, clean: bool) -> None:
        """Note the end of the role."""
        self._ready.unlink(missing_ok=True)
        self._fields["ended"] = "clean" if clean else "failed"
        self.write(None, force=True)
