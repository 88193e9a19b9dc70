"""How a role's process ends after an error: exit code and one line, for its supervisor and for people."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from schemas.endings import FULL_EXIT, SETUP_EXIT, WAITING_EXIT
from schemas.errors import (
    ArtifactError,
    BrokerUnavailableError,
    FreshetError,
    SettingsError,
    StoreUnavailableError,
)

# No space, quota used up, file as large as this process may write (`ulimit -f`).
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Ending:
    """How a role ends.

    Args:
        text: one line.
        waits_for: "broker" or "store" if that is away.
        unexpected: whether the traceback is worth logging.
    """

    code: int
    text: str
    waits_for: str = ""
    unexpected: bool = False


def ending(error: Exception, home: Path) -> Ending:
    """Return the exit code and the line for an error that left a role."""
    text = str(error)
    match error:
        case BrokerUnavailableError():
            return Ending(WAITING_EXIT, text, "broker")
        case StoreUnavailableError():
            return Ending(WAITING_EXIT, text, "store")
        case SettingsError() | ArtifactError():
            return Ending(SETUP_EXIT, text)
        case FreshetError():
            return Ending(1, text)
        case OSError() if error.errno in _FULL:
            return Ending(FULL_EXIT, f"the disk is full: {error.strerror} ({error.filename or home}); free some space")
    return Ending(1, f"{type(error).__name__}: {text}", unexpected=True)
