"""What a role and its supervisor agree on: its files under `run/`, the exit code of a stall, when a role must end.

`run/ROLE.ready` is there while the role has its partitions and states. `run/ROLE.json` holds its counters, see
`Progress`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import orjson

from schemas.files import write_whole
from schemas.watch.activities import Activities
from schemas.watch.instruments import histogram
from schemas.watch.lag import Partition, PartitionLags

log = logging.getLogger("freshet.progress")

STALLED_EXIT = 70  # EX_SOFTWARE of sysexits.h
_EVERY_S = 1.0
# Why a record is a dead letter: its bytes are no such message; its event time is in the future; processing it alone
# raised an error; the role refused it; it, or what it caused, is larger than the broker takes.
DeadLetterKind = Literal["unreadable", "future", "failed", "rejected", "too_large"]


def ready_file(home: Path, role: str) -> Path:
    """Return the file that is there while the role has its partitions and its states; it holds the process id."""
    return home / "run" / f"{role}.ready"


def counters_file(home: Path, role: str) -> Path:
    """Return the file with the role's counters; `Progress` lists them."""
    return home / "run" / f"{role}.json"


class Stall:
    """Decides whether work stands still. Pure: times are passed in.

    Args:
        limit_s: seconds that work may wait while nothing moves.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._seen: object = None
        self._since: float | None = None

    def reached(self, now: float, mark: object, work_waits: bool) -> bool:
        """Take a sample and return whether work has waited for the whole limit.

        Args:
            now: monotonic seconds.
            mark: anything that changes when something gets done.
            work_waits: whether there is work to do. Time without work does not count.
        """
        if mark != self._seen or not work_waits or self._since is None:
            self._seen, self._since = mark, now
            return False
        return now - self._since >= self._limit_s


class FailureLimit:
    """Decides when failing records are the role's fault, so that it ends instead of burying them all. Pure.

    Made for one partition. Unreadable records do not count: nobody's fault but their producer's, however many they are.

    Args:
        run: failures in a row that are allowed. One bad record is the record's fault; so many without one good record
            in between are a broken model's or program's.
        share: of the newest records may fail; a program that is broken for one kind of records has no long run.
        window: of that many records, up to twice as many.
    """

    def __init__(self, run: int = 32, share: float = 0.1, window: int = 1000) -> None:
        self._run = run
        self._share = share
        self._window = window
        self._in_a_row = 0
        self._failed = 0.0
        self._seen = 0.0

    def passed(self, records: int) -> None:
        """Note records that did not fail."""
        if records:
            self._in_a_row = 0
            self._note(records, 0)

    def failed(self) -> str | None:
        """Note a failure; return which limit is exceeded, None if none."""
        self._in_a_row += 1
        self._note(1, 1)
        if self._in_a_row > self._run:
            return f"{self._in_a_row} records in a row failed"
        if self._failed > self._share * max(self._seen, self._window):
            return f"{self._failed:.0f} of the newest {self._seen:.0f} records failed"
        return None

    def _note(self, records: int, failed: int) -> None:
        self._seen += records
        self._failed += failed
        if self._seen > 2 * self._window:  # older records weigh less and less
            self._failed *= self._window / self._seen
            self._seen = self._window


class Progress:
    """Counters of one role, in `<role>.json`, and its `<role>.ready` file. Safe to read from several threads.

    Fields of the file, of every role: `role`, `pid`, `started_at`, `ready_at`, `updated_at` (wall clock, seconds; the
    last is written about once a second), `beat` and `moved` (monotonic seconds at which the file was written, and at
    which something was last finished or nothing waited), `busy` (a batch is in hand), `processed` (records whose
    effects are durable), `produced` (messages sent), `dead_letters`, `dead_letters_by` (their number by kind),
    `last_dead_letter` (its reason), `batches`, `last_batch` (records), `last_batch_s`, `last_batch_at`, `lag` (records
    that wait, null = not known), `partitions` (topic → partition → `lag` and `lag_s`, the age of its oldest waiting
    record), `seconds` (by activity, see `schemas.watch.activities`), `waits_for` ("" = nothing), and `ended` ("clean"
    or "failed") after the end. All count from the start of the process. A role's own counters follow. `/metrics` shows
    the same counters, see `schemas.watch.table`.

    Args:
        counters: returns the role's own counters.
    """

    def __init__(self, home: Path, role: str, counters: Callable[[], dict[str, Any]] = dict) -> None:
        self._ready = ready_file(home, role)
        self._file = counters_file(home, role)
        self._counters = counters
        self.doing = Activities()
        self._lags = PartitionLags()
        self._batch_records = histogram("freshet_batch_records").labels(role)
        self._batch_seconds = histogram("freshet_batch_seconds").labels(role)
        self._written = 0.0
        self._moved = time.monotonic()
        self._lock = threading.Lock()
        self.moves = 0
        """Goes up whenever something was finished; the watchdog looks for a standstill."""
        self.busy = False
        self.waits_for = ""
        self.broker_away = False
        """Set by the watchdogs, which ask the broker."""
        self._fields: dict[str, Any] = {
            "role": role, "pid": os.getpid(), "started_at": time.time(), "ready_at": None, "processed": 0,
            "produced": 0, "dead_letters": 0, "dead_letters_by": {}, "last_dead_letter": "",
            "batches": 0, "last_batch": 0, "last_batch_s": None, "last_batch_at": None, "lag": None}

    def clear(self) -> None:
        """Remove the ready file that an earlier process of this role may have left."""
        self._ready.parent.mkdir(parents=True, exist_ok=True)
        self._ready.unlink(missing_ok=True)
        self.write(None, force=True)

    def ready(self) -> None:
        """Write the ready file: the role has its partitions."""
        self._fields["ready_at"] = self._fields["ready_at"] or time.time()
        self.moved()
        self._ready.write_text(str(os.getpid()))

    @property
    def is_ready(self) -> bool:
        """Whether `ready` was called."""
        return self._fields["ready_at"] is not None

    def moved(self) -> None:
        """Note that something was finished, such as one of many sends."""
        self.moves += 1
        self._moved = time.monotonic()

    def finished(self, topic: str, partition: int, written_at: float) -> None:
        """Note when the newest finished record of a partition was written, wall-clock seconds."""
        self._lags.finished(topic, partition, written_at)

    def lags(self, offsets: Mapping[Partition, tuple[int, int]]) -> None:
        """Note (offset of the next record to read, end offset) of every owned partition."""
        self._lags.note(offsets, time.monotonic(), time.time())

    def in_hand(self, records: int) -> None:
        """Note that a batch was taken."""
        self._fields["last_batch"] = records
        self.busy = True

    def produced(self, records: int) -> None:
        """Note outputs that are on the broker."""
        self._fields["produced"] += records
        self.moved()

    def buried(self, kind: DeadLetterKind, records: int = 1, reason: str = "") -> None:
        """Note dead letters; `reason` is the last one's."""
        self._fields["dead_letters"] += records
        self._fields["last_dead_letter"] = (reason or kind)[:300].encode(errors="replace").decode()
        by_kind = self._fields["dead_letters_by"]
        by_kind[kind] = by_kind.get(kind, 0) + records
        self.moved()

    def done(self, records: int, seconds: float) -> None:
        """Note that a batch is committed."""
        self._fields["processed"] += records
        self._fields["batches"] += 1
        self._fields["last_batch_s"] = round(seconds, 4)
        self._fields["last_batch_at"] = time.time()
        self._batch_records.observe(records)
        self._batch_seconds.observe(seconds)
        self.moved()
        self.busy = False

    def waiting(self, what: str, lag: int | None) -> None:
        """Note what the role waits for ("" = nothing): waiting for the store is not a stall."""
        self.waits_for = what
        self.moved()
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
            if not self.busy and not self._fields["lag"]:
                self._moved = now  # else the first record after an idle hour would look like an hour's standstill
            content = orjson.dumps(
                self.snapshot() | {"beat": now, "moved": self._moved, "updated_at": time.time()},
                option=orjson.OPT_SERIALIZE_NUMPY)
            try:
                write_whole(self._file, content, durable=False)
            except OSError as error:  # a full disk must not end a role that needs none
                log.warning("%s cannot be written: %s", self._file, error)

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as they are now, for the file and for `/metrics`."""
        partitions: dict[str, dict[str, dict[str, float]]] = {}
        for (topic, number), lag in self._lags.lags.items():
            partitions.setdefault(topic, {})[str(number)] = {"lag": lag.records, "lag_s": lag.seconds}
        return self._fields | {
            "waits_for": "broker" if self.broker_away else self.waits_for, "busy": self.busy, "partitions": partitions,
            "seconds": {name: round(seconds, 3) for name, seconds in self.doing.totals().items()}} | self._counters()

    def end(self, clean: bool) -> None:
        """Note the end of the role."""
        self._ready.unlink(missing_ok=True)
        self._fields["ended"] = "clean" if clean else "failed"
        self.write(None, force=True)
