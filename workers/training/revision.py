"""The git revision of the code that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

_AT = ("describe", "--always", "--exclude", "*")
# results and pages are written by what asks for the revision
_CHANGED = ("diff", "--quiet", "HEAD", "--", "schemas", "models", "streams", "workers")


def revision() -> str:
    """Return the git revision of the code, "" outside a repository; "-dirty" where code has been changed since."""
    folder = Path(__file__).resolve().parents[2]
    try:
        at, changed = (subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=5,
                                      check=False) for command in (_AT, _CHANGED))
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return at.stdout.strip() + "-dirty" * (changed.returncode == 1) if at.returncode == 0 else ""
