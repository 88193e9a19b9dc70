"""Whether a running stack is healthy: a pure function of its files under `run/`.

Health is progress. A process that lives may hang, wait or stand still, so what counts is when it last said something
and when it last finished something. All times are monotonic seconds, which on one machine are the same for all
processes and do not jump with its clock.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.liveness import ready_file
from schemas.settings import Settings
from workers.home.stack_info import ProcessReport, Running, find

State = Literal["ok", "starting", "waiting", "stalled", "crashed", "hung"]
# Exit codes of `freshet health`; 2 is the shell's and the command line's own for wrong usage.
EXIT_CODES: dict[State, int] = {"ok": 0, "starting": 3, "waiting": 4, "stalled": 1, "crashed": 1, "hung": 1}
_WORST: tuple[State, ...] = ("ok", "starting", "waiting", "stalled", "crashed", "hung")
# Files are written every second. A role that is stopped, swapped out or has lost its interpreter lock writes none.
HUNG_S = 10.0
# A role that waits for these is not at work; one that gathers samples is.
_SERVERS = ("broker", "store", "schema registry")
# A single crash is over when the role is ready again; a second one soon after makes a loop.
_LOOP = 2


class CounterFile(BaseModel):
    """What health needs of a role's counters (`run/ROLE.json`)."""

    model_config = ConfigDict(extra="ignore")

    pid: int
    beat: float
    moved: float
    busy: bool = False
    lag: int | None = None
    waits_for: str = ""
    processed: int = 0
    dead_letters: int = 0
    last_dead_letter: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class RoleHealth:
    """How one role is.

    Args:
        reason: one line; "" = nothing to say.
        idle_s: seconds since it last finished something; None = not known.
        dead_letters: since its start; None = not known.
        restarts: by the running supervisor.
        error: why it last ended, "" = it never did.
    """

    name: str
    state: State
    reason: str
    lag: int | None = None
    idle_s: float | None = None
    dead_letters: int | None = None
    last_dead_letter: str = ""
    restarts: int = 0
    error: str = ""

    def line(self) -> str:
        """Return it in one line."""
        parts = [f"{self.name}: {self.state}" + (f" ({self.reason})" if self.reason else "")]
        if self.lag is not None:
            parts.append(f"lag {self.lag:,}")
        if self.idle_s is not None:
            parts.append(f"progress {self.idle_s:.0f} s ago")
        if self.dead_letters:
            parts.append(f"{self.dead_letters:,} dead letters, the last: {self.last_dead_letter}")
        if self.restarts:
            parts.append(f"restarted {self.restarts} times" + (f", last for: {self.error}" if self.error else ""))
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Health:
    """How a stack is: as its worst part.

    Args:
        reasons: one line per part that is not ok.
    """

    state: State
    reasons: tuple[str, ...]
    roles: tuple[RoleHealth, ...] = field(default=())


def judge(running: Running, ready: frozenset[str], counters: Mapping[str, CounterFile], now: float,
          stall_s: float) -> Health:
    """Return the health of a stack.

    Args:
        running: what the supervisor wrote.
        ready: roles whose ready file is there.
        counters: per role what it wrote; absent = nothing, as the embedded store.
        now: monotonic seconds.
        stall_s: seconds that work may wait while nothing moves.
    """
    roles = tuple(_role(name, report, running.pids.get(name, 0), name in ready, counters.get(name), now, stall_s)
                  for name, report in running.processes.items())
    found: list[tuple[State, str]] = [(role.state, f"{role.name}: {role.reason}") for role in roles
                                      if role.state != "ok"]
    if now - running.beat > HUNG_S:
        found.append(("hung", f"the supervisor (process {running.pid}) has written nothing for "
                              f"{now - running.beat:.0f} s"))
    if running.waits_for:
        found.append(("waiting", f"waiting for the {running.waits_for}"))
    elif not running.ready and not found:
        found.append(("starting", "the stack is still starting"))
    state: State = max((one for one, _ in found), key=_WORST.index, default="ok")
    return Health(state, tuple(text for _, text in found), roles)


def _role(name: str, report: ProcessReport, pid: int, ready: bool, held: CounterFile | None, now: float,
          stall_s: float) -> RoleHealth:
    counters = held if held is not None and held.pid == pid else None  # else an earlier process's
    state, reason = _state(report, ready, counters, now, stall_s)
    if counters is None:
        return RoleHealth(name, state, reason, restarts=report.restarts, error=report.error)
    return RoleHealth(name, state, reason, counters.lag, max(0.0, now - counters.moved), counters.dead_letters,
                      counters.last_dead_letter, report.restarts, report.error)


def _state(report: ProcessReport, ready: bool, counters: CounterFile | None, now: float, stall_s: float
           ) -> tuple[State, str]:
    if not (ready and report.running):
        return _absent(report)
    if counters is not None:
        silent, still = now - counters.beat, now - counters.moved
        if silent > HUNG_S:
            return "hung", f"has written nothing for {silent:.0f} s"
        if counters.waits_for in _SERVERS:
            return "waiting", f"waiting for the {counters.waits_for}"
        if (counters.busy or counters.lag) and not counters.waits_for and still > stall_s:
            return "stalled", f"nothing finished for {still:.0f} s with {counters.lag or 0:,} records waiting"
    if report.failures >= _LOOP:
        return "crashed", f"failed {report.failures} times in a row, the last: {report.error}"
    return "ok", f"waiting for {counters.waits_for}" if counters and counters.waits_for else ""


def _absent(report: ProcessReport) -> tuple[State, str]:
    """Return the state of a role that does not run, or is not ready."""
    if report.waits_for:
        return "waiting", f"waiting for the {report.waits_for}: {report.error}"
    if not report.running:
        return "crashed", f"{report.error}; it will be started again ({report.failures} failures in a row)"
    if report.ready:  # its supervisor has seen it ready
        return "crashed", "no longer ready: it is ending, or has lost its partitions"
    if report.failures:
        return "crashed", f"starting again after: {report.error} ({report.failures} failures in a row)"
    return "starting", "not ready yet"


def read(settings: Settings, now: float) -> Health | None:
    """Return the health of the stack that runs on the home, None if none does.

    Work that waits counts as stalled at half of `watchdog.stall_s`, when the role itself does not yet end for it.
    """
    running = find(settings.home)
    if running is None:
        return None
    ready = frozenset(name for name in running.processes if ready_file(settings.home, name).exists())
    counters = {}
    for name in running.processes:
        try:
            counters[name] = CounterFile.model_validate_json(counters_path(settings, name).read_bytes())
        except (OSError, ValidationError):
            continue
    return judge(running, ready, counters, now, settings.watchdog.stall_s / 2)


def read_role(settings: Settings, name: str, now: float) -> RoleHealth:
    """Return the health of the role that runs in this process, as it sees itself: it knows of no restarts."""
    ready = ready_file(settings.home, name).exists()
    try:
        counters = CounterFile.model_validate_json(counters_path(settings, name).read_bytes())
    except (OSError, ValidationError):
        counters = None
    # Not ready and no failure: starting, which covers a role that has lost its partitions, too.
    report = ProcessReport(running=True, ready=ready, since=None, restarts=0, failures=0, waits_for="", error="")
    return _role(name, report, os.getpid(), ready, counters, now, settings.watchdog.stall_s / 2)


def counters_path(settings: Settings, name: str) -> Path:
    """Return the file with a role's counters."""
    return ready_file(settings.home, name).with_suffix(".json")
