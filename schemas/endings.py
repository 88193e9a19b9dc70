"""Why a role ends: exit codes that its supervisor understands, and its last error in `run/ROLE.error`.

The exit code of a stall is in `schemas/liveness.py`.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from schemas.files import write_whole

# Of sysexits.h.
FULL_EXIT = 73  # EX_CANTCREAT: the disk is full; the role's own words may not have fitted on it
WAITING_EXIT = 75  # EX_TEMPFAIL: the broker or the store is away; not a failure
SETUP_EXIT = 78  # EX_CONFIG: no fitted model, or settings that do not fit; another start cannot help
_LONGEST_ERROR = 300  # characters; one line of a terminal or two


class LastError(BaseModel):
    """Why a role's process ended, in `run/<role>.error`."""

    pid: int
    at: float = Field(description="wall clock, seconds")
    text: str = Field(description="one line")
    waits_for: str = Field(default="", description="'broker' or 'store' if that was away; '' = the role failed")


def one_line(text: str) -> str:
    """Return the first line of a text that is not empty, of bounded length."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first if len(first) <= _LONGEST_ERROR else first[:_LONGEST_ERROR - 1] + "…"


def note_error(home: Path, role: str, text: str, waits_for: str = "") -> None:
    """Write why this process ends. A disk that takes no more is no reason to end differently."""
    error = LastError(pid=os.getpid(), at=time.time(), text=one_line(text), waits_for=waits_for)
    with suppress(OSError):
        write_whole(_error_file(home, role), error.model_dump_json().encode(), durable=False)


def read_error(home: Path, role: str, pid: int | None) -> LastError | None:
    """Return what the process `pid` of a role wrote at its end, None if it wrote nothing."""
    try:
        error = LastError.model_validate_json(_error_file(home, role).read_bytes())
    except (OSError, ValidationError):
        return None
    return error if error.pid == pid else None


def _error_file(home: Path, role: str) -> Path:
    return home / "run" / f"{role}.error"
