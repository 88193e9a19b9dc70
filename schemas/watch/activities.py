"""Where a consumer's second goes: each moment belongs to one activity, so the rates of all of them add up to 1."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal, get_args

Activity = Literal[
    "idle",  # nothing has come in
    "poll",  # records are there and are being taken over from the client
    "processing",  # decoding, deciding, computing
    "produce",  # waiting for the broker to confirm what a batch caused
    "back_pressure",  # cannot go on: a server is away, or the partition's previous batch is still on its way
    "commit",  # waiting for the broker to take the offsets
    "model",  # looking for and loading another model version
]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)


class Activities:
    """Seconds by activity since the start. One thread enters, any thread reads.

    A wait of an hour counts while it lasts, not when it ends: otherwise an idle role would show no time at all and
    then an hour at once.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._totals: dict[str, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self._now: Activity = "idle"
        self._since = clock()
        self._on_the_way = 0
        self._lock = threading.Lock()

    @property
    def now(self) -> Activity:
        """The current activity."""
        return self._now

    def enter(self, activity: Activity) -> None:
        """Note that another activity begins. Costs half a microsecond: for batches, not for records."""
        with self._lock:
            now = self._clock()
            self._totals[self._now] += now - self._since
            self._now, self._since = activity, now

    def sent(self) -> None:
        """Note that a batch's effects are on their way, for loops that go on meanwhile."""
        self._on_the_way += 1
        self.enter("produce")

    def arrived(self) -> None:
        """Note that they have arrived; when nothing else is on its way and no batch is in hand, the loop is idle."""
        self._on_the_way -= 1
        if not self._on_the_way and self._now == "produce":
            self.enter("idle")

    def totals(self) -> dict[str, float]:
        """Return the seconds of every activity, the current one's up to now."""
        with self._lock:
            return self._totals | {self._now: self._totals[self._now] + self._clock() - self._since}
