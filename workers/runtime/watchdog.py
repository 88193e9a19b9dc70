"""Ends a worker that stands still while work waits: a silent consumer is worse than a restarted one."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from confluent_kafka import KafkaException

from schemas.endings import note_error
from schemas.liveness import STALLED_EXIT, Progress, Stall
from schemas.settings import Settings
from workers.kafka.lag import GroupLag

log = logging.getLogger(__name__)
_BEAT_S = 1.0


class Watchdog:
    """A thread that ends the process with code 70 when it has stalled, or is not ready in time.

    Work waits while a batch is being processed or the committed offsets of the owned partitions are behind their ends.
    An unreachable broker is not a stall: nothing is known then, and the clients reconnect by themselves.
    """

    def __init__(self, settings: Settings, role: str, group: str, topic: str, progress: Progress,
                 owned: Callable[[], set[int]]) -> None:
        self._settings = settings
        self._role = role
        self._group = group
        self._topic = topic
        self._progress = progress
        self._owned = owned
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=run, name=f"{role}{run.__name__}", daemon=True)
                         for run in (self._watch, self._beat)]

    def start(self) -> None:
        """Start watching."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(10.0)

    def _beat(self) -> None:
        """Write the progress file also while the role's own thread is busy or blocked: the process lives."""
        while not self._stopping.wait(_BEAT_S):
            self._progress.write(None)

    def _watch(self) -> None:
        stall_s, start_s = self._settings.watchdog.stall_s, self._settings.watchdog.start_s
        stall, started = Stall(stall_s), time.monotonic()
        reader = GroupLag(self._settings.kafka, self._group)
        try:
            while not self._stopping.wait(min(5.0, stall_s / 4)):
                now = time.monotonic()
                if not self._progress.is_ready and now - started > start_s:
                    self._end(f"has no partitions of {self._topic} after {start_s:g} s")
                try:
                    behind, committed = self._behind(reader)
                except KafkaException:
                    self._progress.broker_away = True
                    continue
                self._progress.broker_away = False
                waits = (self._progress.busy or behind > 0) and not self._progress.waits_for
                if stall.reached(now, (self._progress.moves, committed), waits):
                    self._end(f"made no progress for {stall_s:g} s with {behind} records of {self._topic} waiting")
        finally:
            reader.close()

    def _behind(self, reader: GroupLag) -> tuple[int, tuple[int, ...]]:
        owned = sorted(self._owned())
        if not owned:
            reader.ping()
        offsets = reader.offsets([(self._topic, part) for part in owned])
        self._progress.lags(offsets)
        return sum(max(0, end - done) for done, end in offsets.values()), tuple(done for done, _ in offsets.values())

    def _end(self, why: str) -> None:
        log.critical("%s %s; exiting so that it is started again", self._role, why)
        note_error(self._settings.home, self._role, f"{self._role} {why}")
        logging.shutdown()
        os._exit(STALLED_EXIT)  # the other threads may hang: no clean-up can be relied on
