"""Lag of partitions in records and in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Samples of a partition's end that are kept while records wait. When there are more, every second one of the older half
# goes: at one sample in 5 s the newest 10 minutes stay exact to 5 s, and older ones to a percent or two of their age.
KEPT = 240
Partition = tuple[str, int]


class LagAge:
    """How long the oldest waiting record of one partition has waited. Pure: times are passed in.

    A record's age is known only when it is read. But the end of the partition was seen at several times, and between
    two of them it moved past the record in question.
    """

    def __init__(self) -> None:
        self._ends: list[tuple[float, int]] = []

    def seconds(self, done: int, end: int, now: float, done_age: float | None = None) -> float:
        """Take a sample and return the age of the oldest record that waits, 0 if none does.

        Args:
            done: offset of the next record to read.
            end: offset that the next record will get.
            now: monotonic seconds.
            done_age: seconds since the newest finished record was written, None = none was. Used for records that
                were there before the first sample: they are no older than this.
        """
        if self._ends and end < self._ends[-1][1]:  # another log
            self._ends.clear()
        self._ends.append((now, end))
        if done >= end:
            del self._ends[:-1]
            return 0.0
        while len(self._ends) > 1 and self._ends[1][1] <= done:
            del self._ends[0]
        if len(self._ends) > KEPT:
            self._ends = self._ends[:KEPT // 2:2] + self._ends[KEPT // 2:]
        first_at, first = self._ends[0]
        if first > done:
            return max(0.0, now - first_at if done_age is None else done_age)
        next_at, following = self._ends[1]
        return now - (first_at + (next_at - first_at) * (done - first) / (following - first))


@dataclass(frozen=True, slots=True)
class Lag:
    """One partition's lag."""

    records: int
    seconds: float


class PartitionLags:
    """The lag of every partition that a consumer owns."""

    def __init__(self) -> None:
        self._ages: dict[Partition, LagAge] = {}
        self._newest: dict[Partition, float] = {}
        self.lags: dict[Partition, Lag] = {}

    def finished(self, topic: str, partition: int, written_at: float) -> None:
        """Note when the newest finished record of a partition was written, seconds of the wall clock."""
        self._newest[topic, partition] = written_at

    def note(self, offsets: Mapping[Partition, tuple[int, int]], now: float, wall: float) -> None:
        """Take a sample of all owned partitions: (offset of the next record to read, end offset) of each.

        Args:
            now: monotonic seconds.
            wall: wall clock, seconds.
        """
        self._ages = {part: self._ages.get(part) or LagAge() for part in offsets}
        lags = {}
        for part, (done, end) in offsets.items():
            newest = self._newest.get(part)
            age = None if newest is None else max(0.0, wall - newest)
            lags[part] = Lag(max(0, end - done), round(self._ages[part].seconds(done, end, now, age), 3))
        self.lags = lags
