"""What is taken now: the popularity of items, which halves with the time since each event.

Each ranking worker counts the events of the requests it gets. Users are spread over workers by a hash, so that each one
sees a random share of them. It is kept in a file, so that a restart does not lose it; a worker on a new machine begins
with the popularity at the end of the data that the model was fitted on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import FreshetError
from schemas.files import write_whole

log = logging.getLogger(__name__)
# Items that are counted, at most twice as many; the least popular go. 20,000 of them take 3 MB.
KEPT = 20_000
# Counts are kept as of a past moment, and moved forward after this many half-lives: floats reach much further.
MOVE_AFTER = 64.0
SAVE_EVERY_S = 60.0


class _Saved(msgspec.Struct):
    at: float
    counts: dict[str, float]


class PopularNow:
    """Counts of events by item, each worth 2^(−age / half-life).

    Args:
        half_life_s: seconds of event time.
        prior: counts to begin with, as of the first event.
    """

    def __init__(self, half_life_s: float, prior: Mapping[str, float] | None = None) -> None:
        self._half_life_s = half_life_s
        self._counts: dict[str, float] = dict(prior or {})
        self._at: float | None = None
        self._rows: tuple[Mapping[str, int], NDArray[np.float32]] | None = None  # as they were last asked for

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, events: Iterable[tuple[str, float]], at: float) -> None:
        """Count events.

        Args:
            events: item and weight.
            at: event time, seconds.
        """
        if self._at is None:
            self._at = at
        halvings = (at - self._at) / self._half_life_s
        if halvings > MOVE_AFTER:
            shrink = 2.0**-min(halvings, 1000.0)
            self._counts = {item: left for item, count in self._counts.items() if abs(left := count * shrink) > 1e-9}
            self._at, halvings = at, 0.0
        worth = 2.0 ** max(halvings, -1000.0)
        counts = self._counts
        for item, weight in events:
            counts[item] = counts.get(item, 0.0) + weight * worth
        self._rows = None
        if len(counts) > 2 * KEPT:
            self._counts = dict(sorted(counts.items(), key=lambda pair: -pair[1])[:KEPT])

    def shares(self, rows: Mapping[str, int], n: int) -> NDArray[np.float32]:
        """Return (n,) the share of each item row in all events, all 0 where nothing is known.

        Args:
            rows: item → row; rows from n on are left out.
        """
        if self._rows is None or self._rows[0] is not rows or len(self._rows[1]) != n:
            out = np.zeros(n)
            for item, count in self._counts.items():
                row = rows.get(item, n)
                if row < n and count > 0:
                    out[row] = count
            total = out.sum()
            self._rows = rows, (out / total if total > 0 else out).astype(np.float32)
        return self._rows[1]

    def dumps(self) -> bytes:
        """Return the counts as bytes."""
        return msgspec.msgpack.encode(_Saved(self._at or 0.0, self._counts))

    def loads(self, data: bytes) -> None:
        """Take saved counts.

        Raises:
            FreshetError: the bytes hold none.
        """
        try:
            saved = msgspec.msgpack.decode(data, type=_Saved)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FreshetError(f"they cannot be read: {error}") from error
        self._at, self._counts, self._rows = saved.at or None, saved.counts, None


class KeptPopular:
    """Saves a popularity into a file about once a minute, and reads it at the start.

    Args:
        ticks: monotonic seconds.
    """

    def __init__(self, popularity: PopularNow, path: Path, ticks: Callable[[], float] = time.monotonic) -> None:
        self._popularity, self._path, self._ticks = popularity, path, ticks
        self._saved_at = ticks()
        try:
            popularity.loads(path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, FreshetError) as error:
            log.warning("what was popular is lost, it is counted from now on: %s: %s", path, error)

    def save(self, *, now: bool = False) -> None:
        """Write the file if the last time is a minute ago. A full disk costs the popularity, not the role."""
        if not now and self._ticks() - self._saved_at < SAVE_EVERY_S:
            return
        self._saved_at = self._ticks()
        try:
            write_whole(self._path, self._popularity.dumps(), durable=False)
        except OSError as error:
            log.warning("what is popular is not saved: %s: %s", self._path, error)
