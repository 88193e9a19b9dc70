"""The share of a source's newest records that are no events: a producer that writes something else is seen at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60.0
FEWEST = 100  # records of the window below which a share says nothing


@dataclass(slots=True)
class UnusableShare:
    """Records of the last minute and how many of them were dead letters. Pure: time is passed in."""

    _batches: deque[tuple[float, int, int]] = field(default_factory=deque)
    records: int = 0
    bad: int = 0

    def note(self, ticks: float, records: int, bad: int) -> float:
        """Add a batch at `ticks` (monotonic seconds); return the share of the last minute's, 0 for too few records."""
        self._batches.append((ticks, records, bad))
        self.records += records
        self.bad += bad
        while self._batches[0][0] < ticks - WINDOW_S:
            _, records, bad = self._batches.popleft()
            self.records -= records
            self.bad -= bad
        return self.bad / self.records if self.records >= FEWEST else 0.0
