"""Writes the ready file and the counters, and ends the process when work waits and nothing moves."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from schemas.liveness import STALLED_EXIT, Progress, Stall

log = logging.getLogger("freshet.streams")

SAMPLE_S = 1.0
# The broker is asked for end offsets this often: a dead fetcher would never report a lag.
ASK_S = 5.0
# A crashed app has nothing left to do: whatever was not settled will be delivered again.
CRASH_S = 5.0
# A stopped one commits what is on its way; the broker may be away. Less than supervisors wait before they kill.
STOP_S = 20.0


def end_within(seconds: float, progress: Progress) -> None:
    """End the process with code 1 after `seconds`, whatever it waits for then; it does not count as ready any more."""
    progress.end(clean=False)

    def end() -> None:
        time.sleep(seconds)
        log.error("the crashed process has not ended within %.0f s; exiting", seconds)
        logging.shutdown()
        os._exit(1)

    threading.Thread(target=end, daemon=True, name="end").start()


class FaustWatchdog:
    """Watches a Faust app from its own loop, and that loop from a thread.

    Args:
        stall_s: seconds of lag without progress that are allowed; the loop gets the same time to answer.
        progress: whose files are written, and whose `moves` count as progress.
        plain: returns the plain name of a topic.
    """

    def __init__(self, stall_s: float, progress: Progress, plain: Callable[[str], str] = str) -> None:
        self._progress = progress
        self._plain = plain
        self._stall = Stall(stall_s)
        self._stall_s = stall_s
        self._beat = time.monotonic()

    async def run(self, app: Any) -> None:
        """Watch until the process ends; write the ready file when partitions are assigned and states recovered."""
        threading.Thread(target=self._watch_loop, args=(app,), daemon=True, name="watchdog").start()
        asked, waiting, said = -ASK_S, 0, False
        while not app.should_stop:
            self._beat = now = time.monotonic()
            up = _recovered(app)
            if up and not said:
                said = True
                self._progress.ready()
                log.info("ready")
            if now - asked >= ASK_S:
                asked = now
                waiting = await self.ask(app)
            self.write(app, waiting)
            done = (up, app.consumer.settled, self._progress.moves, *_recovery_offsets(app))
            if self._stall.reached(now, done, waiting > 0 or not up):
                self._end("stalled: work waits and no offset has moved for %.0f s; exiting", self._stall_s)
            await asyncio.sleep(SAMPLE_S if said else 0.1)

    def write(self, app: Any, waiting: int) -> None:
        """Write the counters. A batch that a rebalance dropped is in nobody's hand, though it was never done."""
        self._progress.busy = app.consumer.unsettled > 0
        self._progress.write(waiting)

    async def ask(self, app: Any) -> int:
        """Return the records not fetched and batches not settled; 1 and "broker" in the counters if it does not answer.

        That is a stall all the same: a consumer that hangs cannot be told from a broker that is away. A supervisor
        waits for the broker before it starts the role again.
        """
        try:
            offsets = await _offsets(app)
        except Exception as error:
            log.warning("the broker does not report end offsets: %r", error)
            self._progress.broker_away = True
            return 1
        self._progress.broker_away = False
        self._progress.lags({(self._plain(topic), number): at for (topic, number), at in offsets.items()})
        behind = sum(max(0, end - position) for position, end in offsets.values())
        return behind + (app.consumer.unsettled if offsets else 0)

    def _watch_loop(self, app: Any) -> None:
        while not app.should_stop:
            time.sleep(SAMPLE_S)
            if time.monotonic() - self._beat >= self._stall_s + ASK_S:
                self._end("stalled: the event loop has not answered for %.0f s; exiting", self._stall_s)
        time.sleep(STOP_S)
        self._end("the process was told to stop and has not ended within %.0f s; exiting", STOP_S)

    def _end(self, why: str, seconds: float) -> None:
        log.error(why, seconds)
        self._progress.end(clean=False)
        logging.shutdown()
        os._exit(STALLED_EXIT)


def _recovered(app: Any) -> bool:
    recovery = app.tables.recovery
    return recovery.completed.is_set() and not app.rebalancing and not recovery.in_recovery


def _recovery_offsets(app: Any) -> tuple[int, ...]:
    return tuple(offset for offset in app.tables.recovery.active_offsets.values() if offset is not None)


async def _offsets(app: Any) -> dict[tuple[str, int], tuple[int, int]]:
    """Return (offset of the next record to fetch, end offset) of every partition of the sources.

    Fetch positions are compared, not settled offsets: a transaction marker or a compacted hole at the end of a
    partition has an offset that no record will ever have.
    """
    consumer = app.consumer
    owned = [tp for tp in consumer.assignment() if tp.topic in app.batched_topics]
    if not owned:
        return {}
    async with asyncio.timeout(ASK_S):
        ends = await consumer.end_offsets(*owned)
        return {(tp.topic, tp.partition): (await consumer.position(tp) or 0, ends[tp]) for tp in owned}
