"""The audit log of the console: who changed what and when, one JSON object per line, in `HOME/audit.jsonl`.

A line is written before the action and one after it: an action whose outcome is missing was cut off.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Literal

import orjson

log = logging.getLogger(__name__)
Outcome = Literal["begun", "done", "failed", "refused"]
_LONGEST = 500  # characters of a text; what a browser sends is not ours to bound


class AuditLog:
    """Appends lines to the file; each is one write, so lines of several processes do not mix."""

    def __init__(self, home: Path) -> None:
        self.path = home / "audit.jsonl"

    def add(self, action: str, outcome: Outcome, by: str, **details: object) -> None:
        """Write a line to the file and to the log.

        Args:
            by: the address that asked.
            details: what it was about; never a secret.

        Raises:
            OSError: the line cannot be written; then the action must not be done.
        """
        shown = {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in details.items()}
        line = orjson.dumps({"at": time.time(), "action": action, "outcome": outcome, "by": by} | shown)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(handle, line + b"\n")
        finally:
            os.close(handle)
        log.info("audit: %s", line.decode())
