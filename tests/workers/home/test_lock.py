from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from schemas.errors import FreshetError
from workers.home.lock import STATES, clear, lock, run_folder

HOLDER = """
import sys, time
from pathlib import Path
from workers.home.lock import lock

with lock(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(home: Path, name: str = "up") -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(home), name], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def take(home: Path, name: str = "up") -> None:
    with lock(home, name):
        pass


def test_the_error_names_the_process_that_holds_the_home_until_it_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        for _ in range(2):  # asking does not change what is said of the holder
            with pytest.raises(FreshetError, match=f"{tmp_path} is in use by process {process.pid} .*FRESHET_HOME"):
                take(tmp_path)
        take(tmp_path, "another")
    finally:
        process.kill()
        process.communicate()
    take(tmp_path)
    assert (run_folder(tmp_path) / "up.lock").read_text().startswith(f"{os.getpid()} on ")


def test_an_error_in_the_block_releases_the_home(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path, "up"):
        assert 1 // 0
    take(tmp_path)


def test_another_thread_may_release_the_home(tmp_path: Path) -> None:
    locks = ExitStack()
    locks.enter_context(lock(tmp_path, "up"))
    thread = threading.Thread(target=locks.close)
    thread.start()
    thread.join()
    take(tmp_path)
    process = holder(tmp_path)  # for other processes, too
    process.kill()
    process.communicate()


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_held_where_it_is_and_cleared_without_letting_go(tmp_path: Path, state: str) -> None:
    inside = tmp_path / "instance" / state
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "file").write_text("x")
    (inside / "file").write_text("x")
    other = tmp_path / "other"  # another container: its own home and run folder, the state on a shared volume
    other.mkdir()
    (other / state).symlink_to(inside)
    process = holder(tmp_path / "instance", state)
    try:
        with pytest.raises(FreshetError, match=f"holds {state}"):
            take(other, state)
        clear(other, state)
        assert [path.name for path in inside.iterdir()] == [".lock"]
        with pytest.raises(FreshetError, match=f"holds {state}"):
            take(tmp_path / "instance", state)
    finally:
        process.kill()
        process.communicate()
    clear(tmp_path / "none", state)
