from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from schemas.errors import FreshetError
from workers.home.lock import lock, run_folder

HOLDER = """
import sys, time
from pathlib import Path
from workers.home.lock import lock

with lock(Path(sys.argv[1]), "up"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(home)], stdout=subprocess.PIPE, text=True)
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
            with pytest.raises(FreshetError, match=f"{tmp_path} is in use by process {process.pid};.*FRESHET_HOME"):
                take(tmp_path)
        take(tmp_path, "another")
    finally:
        process.kill()
        process.communicate()
    take(tmp_path)
    assert (run_folder(tmp_path) / "up.lock").read_text() == str(os.getpid())


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
