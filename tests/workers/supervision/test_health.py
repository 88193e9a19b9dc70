"""Health is a pure function of what supervisor and roles wrote: every way of not working is seen, and named."""

from __future__ import annotations

from typing import Any

import pytest

from workers.home.stack_info import ProcessReport, Running
from workers.supervision.health import EXIT_CODES, HUNG_S, CounterFile, Health, judge

NOW, STALL_S = 10_000.0, 30.0
PID = 7


def report(**fields: Any) -> ProcessReport:
    return ProcessReport(**{"running": True, "ready": True, "since": 1.0, "restarts": 0, "failures": 0,
                            "waits_for": "", "error": ""} | fields)


def counters(**fields: Any) -> CounterFile:
    return CounterFile(**{"pid": PID, "beat": NOW - 1, "moved": NOW - 1, "lag": 0} | fields)


def health(role: ProcessReport | None = None, held: CounterFile | None = None, *, there: bool = True,
           **stack: Any) -> Health:
    running = Running(**{"pid": 1, "started_at": 0.0, "bootstrap": "h:1", "qdrant_url": "", "roles": ["ranking"],
                         "command": "up", "pids": {"ranking": PID}, "ready": True, "beat": NOW - 1,
                         "processes": {"ranking": role or report()}} | stack)
    return judge(running, frozenset(["ranking"] if there else []), {"ranking": held} if held else {}, NOW, STALL_S)


@pytest.mark.parametrize("good", [
    health(held=counters()),
    health(),  # the embedded store writes no counters
    health(held=counters(lag=5, moved=NOW - STALL_S + 1)),  # work waits, but not for long
    health(held=counters(moved=NOW - 3600)),  # nothing waits: no standstill
    health(held=counters(lag=5, moved=NOW - 3600, waits_for="samples")),  # alignment gathers for hours
    health(report(restarts=1, failures=1, error="killed by SIGKILL"), counters()),  # one crash, ready again
    health(held=counters(pid=PID + 1, beat=0.0)),  # an earlier process's file
])
def test_a_stack_that_works(good: Health) -> None:
    assert (good.state, good.reasons, EXIT_CODES[good.state]) == ("ok", (), 0)


@pytest.mark.parametrize(("bad", "state", "reason"), [
    (health(held=counters(lag=5, moved=NOW - STALL_S - 1)), "stalled", "nothing finished for 31 s with 5 records"),
    (health(held=counters(busy=True, moved=NOW - STALL_S - 1)), "stalled", "nothing finished"),
    (health(held=counters(beat=NOW - HUNG_S - 1)), "hung", "written nothing for 11 s"),
    (health(beat=NOW - HUNG_S - 1), "hung", "supervisor"),
    (health(held=counters(waits_for="broker")), "waiting", "waiting for the broker"),
    (health(held=counters(waits_for="store")), "waiting", "waiting for the store"),
    (health(held=counters(waits_for="schema registry")), "waiting", "waiting for the schema registry"),
    (health(report(running=False, ready=False, waits_for="broker", error="no broker")), "waiting", "no broker"),
    (health(report(running=False, ready=False, failures=3, error="out of memory")), "crashed", "out of memory"),
    (health(report(ready=False, failures=1, error="exit 1"), there=False), "crashed", "starting again after: exit 1"),
    (health(report(failures=2, error="poison"), counters()), "crashed", "2 times in a row, the last: poison"),
    (health(there=False), "crashed", "no longer ready"),
    (health(report(ready=False), there=False), "starting", "not ready yet"),
    (health(processes={}, ready=False), "starting", "still starting"),
    (health(processes={}, ready=False, waits_for="broker"), "waiting", "waiting for the broker"),
])
def test_every_way_of_not_working_is_named(bad: Health, state: str, reason: str) -> None:
    assert bad.state == state
    assert reason in bad.reasons[0]
    assert EXIT_CODES[bad.state] != 0


def test_the_worst_role_decides() -> None:
    found = health(processes={"a": report(ready=False), "b": report(running=False, error="x"), "c": report()})
    assert found.state == "crashed"
    assert len(found.reasons) == 3  # none of them is ready here


def test_a_line_per_role_says_what_is_known() -> None:
    held = counters(lag=12, moved=NOW - 3, dead_letters=4, last_dead_letter="not JSON")
    (role,) = health(report(restarts=2, failures=1, error="exit code 70"), held).roles
    assert role.line() == ("ranking: ok, lag 12, progress 3 s ago, 4 dead letters, the last: not JSON, "
                           "restarted 2 times, last for: exit code 70")


def test_exit_codes_differ_by_what_to_do() -> None:
    assert EXIT_CODES == {"ok": 0, "starting": 3, "waiting": 4, "stalled": 1, "crashed": 1, "hung": 1}
