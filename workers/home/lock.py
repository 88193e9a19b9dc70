"""Locks on a home folder: each of its parts has one owner at a time, a role's process or a folder of state.

The lock of a state lies in the state's own folder. Containers share some of these folders and not others: with it, two
services on one volume see each other, and two instances that each have their own `streams` do not.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.errors import FreshetError

# Folders of the home that hold what a role may lose or spoil: user states, knowledge, the guard's evidence.
STATES = ("streams", "store", "guard")
_LOCK = ".lock"


def run_folder(home: Path) -> Path:
    """Return the folder of locks, logs and ready files."""
    return home / "run"


@contextmanager
def lock(home: Path, name: str) -> Iterator[None]:
    """Hold one part of `home` for this process; it ends with the process, however that ends.

    Args:
        name: a state of `STATES`, or a role without state.

    Raises:
        FreshetError: another process holds it, the text says which; or its folder cannot be written.
    """
    path = home / name / _LOCK if name in STATES else run_folder(home) / f"{name}.lock"
    # thread_local: the thread that releases it may be another one than took it.
    held = FileLock(path, blocking=False, thread_local=False, on_acquired=_sign)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = held.acquire()
    except PermissionError as error:
        raise FreshetError(
            f"{path.parent} is not writable for user {os.getuid()}; give it to that user, or set FRESHET_HOME to "
            "another folder") from error
    except Timeout as error:
        holder = path.read_text().strip() or "unknown"
        raise FreshetError(
            f"{home} is in use by process {holder}, which holds {name}; stop that one, or set FRESHET_HOME to another "
            "folder"
        ) from error
    with taken:
        yield


def _sign(handle: int) -> None:
    """Write this process's id and machine into the lock's file: filelock does not say who holds a lock."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)


def clear(home: Path, state: str) -> None:
    """Remove what a state's folder holds, but for its lock: a removed lock would be free to be taken twice."""
    folder = home / state
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
