"""Child processes that cannot outlive their parent.

A child's command is started through this file (`python child.py PARENT COMMAND…`, standard library only).
On Linux it asks the kernel to kill it when its parent dies for any reason (`PR_SET_PDEATHSIG`), and becomes the
command. Elsewhere it stays, runs the command and watches for its parent's end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
LINUX = sys.platform.startswith("linux")


class Child:
    """One child process in a group of its own, its output in a log file, or in this process's standard error.

    A group of its own keeps a terminal's Ctrl-C from reaching it directly: the parent decides the order of stopping.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path | None,
                 environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.environ = dict(os.environ if environ is None else environ)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None before the first start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process; its log is appended to.

        Call it from a thread that lives as long as the child may: Linux ties the child to the thread.
        """
        with ExitStack() as opened:
            out: IO[bytes] | int = sys.stderr.fileno()
            if self.log is not None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                out = opened.enter_context(self.log.open("ab"))
            self._process = subprocess.Popen(
                bound(self.command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environ,
                start_new_session=True)

    def exit_code(self) -> int | None:
        """Return the exit code, None while it runs."""
        return None if self._process is None else self._process.poll()

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM)."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self, seconds: float) -> bool:
        """Return whether it has ended within `seconds`."""
        if self._process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it and everything it started, now."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group outlives its leader: also after its own exit
        self._process.wait()

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of the log, "" if it has none of its own."""
        return "" if self.log is None else tail(self.log, lines)


def tail(path: Path, lines: int) -> str:
    """Return the last `lines` lines of a text file, "" if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as source:
        source.seek(max(0, path.stat().st_size - 64_000))  # 64 kB hold far more lines than anyone asks for
        text = source.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def stop_all(children: Sequence[Child], seconds: float) -> None:
    """Ask `children` to stop, all at once, and kill those that still run after `seconds`. Nothing is left behind."""
    deadline = time.monotonic() + seconds
    try:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(deadline - time.monotonic())
    finally:  # a second Ctrl-C while waiting ends here too
        for child in children:
            child.kill()


def bound(command: Sequence[str]) -> list[str]:
    """Return a command that runs `command` and ends it with this process. -I and -S: this costs 15 ms, not 150."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _become(parent: int, command: list[str]) -> int:
    """Run `command` in this process (Linux) or under it, tied to the life of `parent`."""
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            return 1
        os.execvp(command[0], command)  # noqa: S606
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        if os.getppid() != parent:
            child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.5)
    return child.returncode


if __name__ == "__main__":
    sys.exit(_become(int(sys.argv[1]), sys.argv[2:]))
