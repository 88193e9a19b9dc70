"""What a supervisor knows of one role: its runs, what it waits for, its last error."""

from __future__ import annotations

import signal
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from schemas.endings import FULL_EXIT, LastError, one_line
from schemas.liveness import STALLED_EXIT
from workers.home.stack_info import ProcessReport
from workers.supervision.child import Child
from workers.supervision.logs import MARK
from workers.supervision.restarts import RestartDecision, RestartPolicy, RoleRun

_MEANINGS = {
    FULL_EXIT: f"exit code {FULL_EXIT}: the disk is full, free some space",
    STALLED_EXIT: f"exit code {STALLED_EXIT}: stalled"}
_KEPT = 100  # runs; more than any sensible limit of failures in a row


@dataclass
class Supervised:
    """One role's process. Times are monotonic seconds, passed in.

    Attributes:
        ready: when it was seen to be ready; None = not yet.
        due: when it may start again; None while it runs.
        waits_for: what it waits for, "" = nothing.
        error: why it last ended, "" = it never did.
        settled: whether this run has lasted long enough to forget earlier crashes.
        restarts: how often it was started again.
    """

    started: float = 0.0
    ready: float | None = None
    due: float | None = None
    waits_for: str = ""
    error: str = ""
    settled: bool = False
    restarts: int = 0
    runs: deque[RoleRun] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def begin(self, now: float) -> None:
        """Note a start."""
        self.started, self.ready, self.due, self.waits_for, self.settled = now, None, None, "", False

    def end(self, now: float, policy: RestartPolicy, waits_for: str, error: str) -> RestartDecision:
        """Note an end and return what to do."""
        self.runs.append(RoleRun(self.started, self.ready, now, waits_for))
        self.ready, self.waits_for, self.error = None, waits_for, error
        decision = policy.decide(self.runs)
        self.due = now + decision.after_s
        return decision

    def keep_waiting(self, now: float, policy: RestartPolicy, error: str) -> None:
        """Note that what it waits for is still away: it will be asked again later, without a start."""
        self.runs.append(RoleRun(now, None, now, self.waits_for))
        self.error, self.due = error, now + policy.decide(self.runs).after_s

    def report(self, policy: RestartPolicy) -> ProcessReport:
        """Return what other commands see."""
        return ProcessReport(
            running=self.due is None, ready=self.ready is not None, since=self.started if self.due is None else None,
            restarts=self.restarts, failures=policy.failures(self.runs), waits_for=self.waits_for, error=self.error)


def said(code: int, noted: LastError | None, child: Child) -> str:
    """Return in one line why a process ended: its own words, else its exit code and the last line of its log."""
    if noted is not None:
        return noted.text
    how = _MEANINGS.get(code, f"exit code {code}")
    if code < 0:
        how = f"killed by signal {-code}"
        with suppress(ValueError):
            how = f"killed by {signal.Signals(-code).name}"
    last = one_line("\n".join(reversed(child.tail().splitlines()))) if code >= 0 else ""
    return f"{last} ({how})" if last and not last.startswith(MARK) else how
