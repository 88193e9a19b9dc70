"""A lock on a home folder: one process of a kind at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import FreshetError


def run_folder(home: Path) -> Path:
    """Return the folder of locks, logs and ready files."""
    return home / "run"


@contextmanager
def lock(home: Path, name: str) -> Iterator[None]:
    """Hold `home` for this process.

    Raises:
        FreshetError: another process holds it; the text says which.
    """
    path = run_folder(home) / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise FreshetError(
                f"{home} is in use by process {holder}; stop that one, or set FRESHET_HOME to another folder"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
