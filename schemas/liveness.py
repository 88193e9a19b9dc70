"""What a role and its supervisor agree on: the ready file, the exit code of a stall, and what counts as one."""

from __future__ import annotations

from pathlib import Path

STALLED_EXIT = 70  # EX_SOFTWARE of sysexits.h


def ready_file(home: Path, role: str) -> Path:
    """Return the file that is there while the role has its partitions and its states; it holds the process id."""
    return home / "run" / f"{role}.ready"


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
