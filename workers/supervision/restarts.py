"""When a role that ended is started again, and when no longer: a pure function of what happened to it.

Failures are counted in a row, not per minute: a start may take longer than any window of minutes, and a role that never
works must not be started for ever (107 restarts in 30 minutes were seen).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RoleRun:
    """One run of a role, from its start to its end. Times are monotonic seconds.

    Args:
        ready: when it had its partitions and states; None = never.
        waits_for: what it ended for lack of, such as "broker"; "" = it failed.
    """

    started: float
    ready: float | None
    ended: float
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """What to do after a role's end.

    Args:
        after_s: seconds to wait before the next start.
        failures: failures in a row so far.
    """

    what: Literal["restart", "wait", "give up"]
    after_s: float
    failures: int


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Decides on restarts.

    Args:
        limit: failures in a row at which to give up.
        settled_s: a run that ends within this time of being ready is a failure; one that ends later was good work, and
            the count starts again at 0. Longer than a stall takes to be found, or a loop of stalls would never end.
        first_s, longest_s: the wait doubles from the first to the longest: 121 s before the 10th failure in all.
        longest_wait_s: the longest between two questions whether the broker is back; they cost next to nothing.
    """

    limit: int = 10
    settled_s: float = 180.0
    first_s: float = 0.5
    longest_s: float = 30.0
    longest_wait_s: float = 10.0

    def failures(self, runs: Sequence[RoleRun]) -> int:
        """Return how many of the last runs failed in a row. Runs that ended for lack of the broker do not count."""
        count = 0
        for run in reversed(runs):
            if run.waits_for:
                continue
            if run.ready is not None and run.ended - run.ready >= self.settled_s:
                break
            count += 1
        return count

    def decide(self, runs: Sequence[RoleRun]) -> RestartDecision:
        """Return what to do after the last of `runs`, oldest first, has ended."""
        failures = self.failures(runs)
        if runs[-1].waits_for:
            waits = 0
            for run in reversed(runs):
                if not run.waits_for:
                    break
                waits += 1
            return RestartDecision("wait", self.wait(waits), failures)
        if failures >= self.limit:
            return RestartDecision("give up", 0.0, failures)
        return RestartDecision("restart", self.pause(failures), failures)

    def wait(self, tries: int) -> float:
        """Return the seconds until the broker is asked again after so many tries in a row."""
        return min(self.longest_wait_s, self.pause(tries))

    def pause(self, tries: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return min(self.longest_s, self.first_s * 2.0 ** min(max(0, tries - 1), 30))
