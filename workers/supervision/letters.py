"""What `freshet up` and `freshet doctor` say of a stack: where its console is; dead letters, how many, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from schemas.settings import Settings
from workers.home.stack_info import find
from workers.supervision.health import CounterFile, counters_path

EVERY_S = 60.0
_REASON = 200  # characters


@dataclass(slots=True)
class _Said:
    pid: int
    at: float
    dead_letters: int = 0
    processed: int = 0


class Notices:
    """New dead letters of a stack's roles: the first ones at once, then once a minute. Pure: time is passed in."""

    def __init__(self) -> None:
        self._said: dict[str, _Said] = {}

    def lines(self, counters: Mapping[str, CounterFile], now: float) -> Iterator[str]:
        """Yield a line for each role that has to say something, at `now` (monotonic seconds)."""
        for role, held in counters.items():
            said = self._said.get(role)
            if said is None or said.pid != held.pid:  # a role that starts again counts from 0
                said = self._said[role] = _Said(held.pid, now - EVERY_S)
            letters = held.dead_letters - said.dead_letters
            if letters > 0 and now - said.at >= EVERY_S:
                records = max(held.processed - said.processed, letters)
                yield f"{role}: " + summary(letters, records, held.last_dead_letter)
                self._said[role] = _Said(held.pid, now, held.dead_letters, held.processed)
            elif now - said.at >= EVERY_S:
                said.processed = held.processed  # a share says something of the time in which the letters came


def summary(letters: int, records: int, reason: str) -> str:
    """Return one line on dead letters."""
    shown = reason if len(reason) <= _REASON else f"{reason[:_REASON]}…"
    return (f"{letters:,} dead letter{'s' if letters > 1 else ''} ({letters / max(records, 1):.0%} of {records:,} "
            f"records), the last: {shown}; `freshet dead-letters` lists them")


def read_counters(settings: Settings) -> dict[str, CounterFile]:
    """Return the counters of the roles that run on the home, of those that have written some."""
    running = find(settings.home)
    out = {}
    for name, pid in (running.pids if running else {}).items():
        try:
            held = CounterFile.model_validate_json(counters_path(settings, name).read_bytes())
        except (OSError, ValidationError):
            continue
        if held.pid == pid:
            out[name] = held
    return out


def console_url(settings: Settings) -> str:
    """Return where the console of the stack on the home is; "" = none runs, or its port is taken, as its log says."""
    held = read_counters(settings).get("console")
    return held.url if held is not None else ""
