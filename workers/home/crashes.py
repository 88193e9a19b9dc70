"""Why roles crashed, in `run/crashes.json`: kept over starts, so that `freshet doctor` can tell afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from schemas.files import write_whole
from workers.home.lock import run_folder

_KEPT = 20  # per role


class Crash(BaseModel):
    """One end of a role that was not asked for, and not for lack of the broker or the store."""

    role: str
    at: float = Field(description="wall clock, seconds")
    code: int = Field(description="exit code; negative = signal")
    reason: str = Field(description="one line")


_CRASHES = TypeAdapter(dict[str, list[Crash]])


class CrashLog:
    """The last crashes of each role since it last worked for a while."""

    def __init__(self, home: Path) -> None:
        self._file = run_folder(home) / "crashes.json"

    def read(self) -> dict[str, list[Crash]]:
        """Return per role its last crashes, at most 20, oldest first."""
        try:
            return _CRASHES.validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return {}

    def add(self, crash: Crash) -> None:
        """Note a crash. A disk that takes no more is tolerated: the crash may be due to that."""
        crashes = self.read()
        crashes[crash.role] = [*crashes.get(crash.role, []), crash][-_KEPT:]
        self._write(crashes)

    def settled(self, roles: Iterable[str]) -> None:
        """Forget the crashes of roles that work."""
        crashes = self.read()
        if left := {role: those for role, those in crashes.items() if role not in set(roles)}:
            self._write(left)
        else:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def _write(self, crashes: dict[str, list[Crash]]) -> None:
        with suppress(OSError):
            write_whole(self._file, _CRASHES.dump_json(crashes), durable=False)
