"""A lock on a home folder: one process of a kind at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.errors import FreshetError


def run_folder(home: Path) -> Path:
    """Return the folder of locks, logs and ready files."""
    return home / "run"


@contextmanager
def lock(home: Path, name: str) -> Iterator[None]:
    """Hold `home` for this process; it ends with the process, however that ends.

    Raises:
        FreshetError: another process holds it; the text says which.
    """
    path = run_folder(home) / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    # thread_local: the thread that releases it may be another one than took it.
    held = FileLock(path, blocking=False, thread_local=False, on_acquired=_sign)
    try:
        taken = held.acquire()
    except Timeout as error:
        holder = path.read_text().strip() or "unknown"
        raise FreshetError(
            f"{home} is in use by process {holder}; stop that one, or set FRESHET_HOME to another folder"
        ) from error
    with taken:
        yield


def _sign(handle: int) -> None:
    """Write this process's id into the lock's file: filelock does not say who holds a lock."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
