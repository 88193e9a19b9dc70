"""Dead letters are said at once, then once a minute, with their share and the last reason; never a flood."""

from __future__ import annotations

import os
from pathlib import Path

from schemas.liveness import Progress
from schemas.settings import Settings
from workers.cli import doctor
from workers.home.stack_info import Running, announce
from workers.supervision.health import CounterFile
from workers.supervision.letters import EVERY_S, Notices, read_counters


def held(letters: int, processed: int, pid: int = 1, reason: str = "not JSON") -> dict[str, CounterFile]:
    return {"streams": CounterFile(
        pid=pid, beat=0.0, moved=0.0, processed=processed, dead_letters=letters, last_dead_letter=reason)}


def test_the_first_is_said_at_once_and_a_flood_once_a_minute() -> None:
    notices, said = Notices(), []
    for second in range(int(3 * EVERY_S)):
        bad = 100 * max(0, second - 10)
        for line in notices.lines(held(bad, 100 * second), float(second)):
            said.append((second, line))
    assert [second for second, _ in said] == [11, 71, 131]
    assert said[0][1].startswith("streams: 100 dead letters (100% of 100 records), the last: not JSON; `freshet dead-l")
    assert said[1][1].startswith("streams: 6,000 dead letters (100% of 6,000 records)")


def test_nothing_is_said_where_there_is_nothing_new() -> None:
    notices = Notices()
    assert list(notices.lines(held(0, 10), 0.0)) == []
    assert len(list(notices.lines(held(1, 20), 1.0))) == 1
    for second in range(2, 400):
        assert list(notices.lines(held(1, 20 + second), float(second))) == []
    (line,) = notices.lines(held(2, 500), 400.0)
    assert "1 dead letter (" in line


def test_a_role_that_starts_again_counts_from_0_and_a_long_reason_is_cut() -> None:
    notices = Notices()
    assert list(notices.lines(held(5, 10), 0.0))
    assert list(notices.lines(held(0, 0, pid=2), 1.0)) == []
    (line,) = notices.lines(held(1, 1, pid=2, reason="x" * 900), 2.0)
    assert "…; `freshet" in line
    assert len(line) < 400


def test_a_stream_of_bad_records_is_said_by_up_and_doctor(tmp_path: Path) -> None:
    """What a role writes of itself is what both read; a former process's counters are nobody's."""
    settings = Settings(home=tmp_path)
    progress = Progress(tmp_path, "streams")
    progress.clear()
    announce(tmp_path, Running(pid=os.getpid(), started_at=0, bootstrap="h:1", qdrant_url="", roles=["streams"],
                               command="up", pids={"streams": os.getpid(), "ranking": os.getpid()}))
    assert list(doctor._letters(settings)) == []
    progress.buried("unreadable", 40, "user_id: missing; the event has who")
    progress.done(50, 0.1)
    progress.write(0, force=True)
    (line,) = Notices().lines(read_counters(settings), 0.0)
    assert line == ("streams: 40 dead letters (80% of 50 records), the last: user_id: missing; the event has who; "
                    "`freshet dead-letters` lists them")
    (check,) = doctor._letters(settings)
    assert check.state == "warning"
    assert "80% of 50 records" in check.text
    announce(tmp_path, Running(pid=os.getpid(), started_at=0, bootstrap="h:1", qdrant_url="", roles=["streams"],
                               command="up", pids={"streams": 1}))
    assert read_counters(settings) == {}
