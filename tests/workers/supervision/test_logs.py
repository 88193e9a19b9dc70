"""Logs stay small, are kept over starts, leave out what repeats, and never hold a secret."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.settings import load, to_environ
from workers.supervision.child import Child
from workers.supervision.logs import BURST, WINDOW_S, Repetition, mark, redacted, rotate, secrets


def test_a_child_that_writes_without_end_keeps_within_the_bound(tmp_path: Path) -> None:
    log = tmp_path / "role.log"
    child = Child("role", [sys.executable, "-c", "while True: print('x' * 999)"], log)
    child.start()
    try:
        rotations, deadline = 0, time.monotonic() + 30
        while rotations < 6:
            rotations += rotate(log, 200_000, 2)
            assert time.monotonic() < deadline
    finally:
        child.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["role.log", "role.log.1", "role.log.2"]
    assert not log.read_bytes().startswith(b"\0")  # it appends: nothing is left of the old place
    assert (tmp_path / "role.log.2").stat().st_size >= 200_000


def test_rotation_moves_copies_up_and_drops_the_oldest(tmp_path: Path) -> None:
    log = tmp_path / "role.log"
    for number in range(5):
        log.write_text(f"{number}" * 10)
        assert rotate(log, 10, 3)
    assert [(tmp_path / f"role.log.{n}").read_text()[0] for n in (1, 2, 3)] == ["4", "3", "2"]
    assert log.read_text() == ""
    log.write_text("short")
    assert not rotate(log, 10, 3)
    assert rotate(log, 5, 0)  # none kept
    assert not rotate(tmp_path / "absent.log", 1, 3)


def test_a_log_is_kept_over_starts(tmp_path: Path) -> None:
    log = tmp_path / "run" / "role.log"
    mark(log, "role")
    with log.open("a") as out:
        out.write("why it died\n")
    mark(log, "role")
    assert "why it died" in log.read_text()
    assert log.read_text().count("role starts") == 2


def test_a_line_that_repeats_is_logged_a_few_times_a_minute() -> None:
    """librdkafka said 20 times a second that a broker was away: 4.7 kB/s in the guard's log."""
    repetition, admitted = Repetition(), []
    for tick in range(int(20 * 5 * WINDOW_S)):
        left_out = repetition.admit("FAIL", tick / 20)
        if left_out is not None:
            admitted.append(left_out)
    assert len(admitted) == 5 * BURST
    assert sum(admitted) == 4 * (20 * WINDOW_S - BURST)  # every line left out before is counted
    assert repetition.admit("another", 0.0) == 0


def test_memory_of_kinds_of_lines_is_bounded() -> None:
    repetition = Repetition()
    for number in range(10_000):
        assert repetition.admit(f"line {number}", 0.0) == 0
    assert len(repetition._seen) <= 500


ROLE = """
import logging
from schemas.settings import load
from workers.supervision.logs import configure
settings = load()
configure(settings, "guard")
log = logging.getLogger("some.module")
log.debug("debug %s", settings.kafka.sasl_password)
log.info("password %s", settings.kafka.sasl_password)
for n in range(50):
    log.warning("record %d of hunter2hunter2 is bad", n)
try:
    raise ValueError(f"server said: {settings.kafka.sasl_password}")
except ValueError:
    log.exception("failed")
"""


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "ERROR"])
def test_a_role_logs_at_the_level_set_and_never_a_secret(tmp_path: Path, level: str) -> None:
    settings = load({"FRESHET_HOME": str(tmp_path), "FRESHET_KAFKA_SASL_PASSWORD": "hunter2hunter2",
                     "FRESHET_LOG_LEVEL": level})
    done = subprocess.run([sys.executable, "-c", ROLE], capture_output=True, text=True, check=True, timeout=60,
                          env={"PYTHONPATH": str(Path(__file__).parents[3])} | to_environ(settings))
    assert "hunter2" not in done.stderr + done.stdout
    assert "server said: (secret)" in done.stderr
    assert ("debug" in done.stderr) == (level == "DEBUG")
    assert ("password (secret)" in done.stderr) == (level != "ERROR")
    assert done.stderr.count("is bad") == {"DEBUG": 50, "INFO": BURST, "ERROR": 0}[level]
    assert "ERROR guard some.module" in done.stderr


def test_a_short_secret_leaves_ordinary_words_alone() -> None:
    settings = load({"FRESHET_KAFKA_SASL_PASSWORD": "abc", "FRESHET_QDRANT_API_KEY": "key-1234"})
    assert secrets(settings) == ("key-1234",)
    assert redacted("abc key-1234", settings) == "abc (secret)"
