"""The git revision of the running code."""

from __future__ import annotations

import subprocess
from pathlib import Path

_AT = ("describe", "--always", "--exclude", "*")
# Only code folders: the callers themselves write results and pages.
_CHANGED = ("diff", "--quiet", "HEAD", "--", "schemas", "models", "streams", "workers")


def revision() -> str:
    """Return the git revision of the code, with "-dirty" if code has changed since; "" outside a repository."""
    folder = Path(__file__).resolve().parents[2]
    try:
        at, changed = (subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=5,
                                      check=False) for command in (_AT, _CHANGED))
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return at.stdout.strip() + "-dirty" * (changed.returncode == 1) if at.returncode == 0 else ""
