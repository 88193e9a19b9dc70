"""What roles log: to files of bounded size or to standard error, repeated lines left out, secrets never.

A child's output goes straight into its file, also what native code and a dying interpreter print. The supervisor keeps
the files small by copying and emptying them, which needs no help from the child: it appends. Lines written between the
two, a few microseconds, are lost; a pipe through the supervisor would lose more when that hangs.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import orjson

from schemas.settings import Settings, rows
from schemas.watch.context import current

FORMAT = "%(asctime)s %(levelname)s {role} %(name)s: %(message)s"
# A broker that is away costs librdkafka 20 lines a second, the dead letters of a flood thousands.
BURST, WINDOW_S = 5, 60.0
MARK = "---"
_KEYS = 500  # kinds of lines remembered
_SHORTEST = 4  # characters; a shorter secret is a part of ordinary words
_DIGITS = re.compile(r"\d+")


def configure(settings: Settings, role: str) -> None:
    """Set up this process's logging, to standard error: the supervisor has put a file or its own there."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines(role, settings) if settings.log.format == "json" else _Redacting(FORMAT.format(role=role), settings))
    if settings.log.level != "DEBUG":
        handler.addFilter(_Repeats())
    logging.basicConfig(level=settings.log.level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request to the store


def secrets(settings: Settings) -> tuple[str, ...]:
    """Return the values of all settings that are secret, but for those too short to be told from ordinary text."""
    values = (str(getattr(getattr(settings, row.section), row.name)) for row in rows() if row.secret)
    return tuple(value for value in values if len(value) >= _SHORTEST)


def redacted(text: str, settings: Settings) -> str:
    """Return a text without the values of secret settings."""
    for secret in secrets(settings):
        text = text.replace(secret, "(secret)")
    return text


class _Redacting(logging.Formatter):
    def __init__(self, pattern: str, settings: Settings) -> None:
        super().__init__(pattern)
        self._settings = settings

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record), self._settings)  # with the traceback, which may quote a secret as well

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line before a traceback, with the trace it belongs to."""
        trace_id, span_id = current.ids
        return super().formatMessage(record) + (f" trace_id={trace_id} span_id={span_id}" if trace_id else "")


class _JsonLines(logging.Formatter):
    """An object per line: time, level, role, logger, message, and error, trace_id and span_id where there are."""

    def __init__(self, role: str, settings: Settings) -> None:
        super().__init__()
        self._role = role
        self._settings = settings

    def format(self, record: logging.LogRecord) -> str:
        trace_id, span_id = current.ids
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname, "role": self._role, "logger": record.name,
            "message": redacted(record.getMessage(), self._settings)}
        if record.exc_info:
            line["error"] = redacted(self.formatException(record.exc_info), self._settings)
        if trace_id:
            line |= {"trace_id": trace_id, "span_id": span_id}
        return orjson.dumps(line, default=str).decode()


class Repetition:
    """Decides which of many similar lines are logged. Pure: times are passed in."""

    def __init__(self, burst: int = BURST, window_s: float = WINDOW_S) -> None:
        self._burst = burst
        self._window_s = window_s
        self._seen: OrderedDict[str, tuple[float, int, int]] = OrderedDict()  # key → (window's start, logged, left out)

    def admit(self, key: str, now: float) -> int | None:
        """Return None if the line is left out, else how many like it were left out before.

        Args:
            now: monotonic seconds.
        """
        since, logged, left_out = self._seen.pop(key, (now, 0, 0))
        if now - since >= self._window_s:
            since, logged = now, 0
        admitted = logged < self._burst
        self._seen[key] = (since, logged + 1, 0) if admitted else (since, logged, left_out + 1)
        if len(self._seen) > _KEYS:
            self._seen.popitem(last=False)
        return left_out if admitted else None


class _Repeats(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._repetition = Repetition()

    def filter(self, record: logging.LogRecord) -> bool:
        key = f"{record.name} {record.levelno} {_DIGITS.sub('#', record.getMessage()[:200])}"
        left_out = self._repetition.admit(key, time.monotonic())
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out:,} lines like this were left out)", ()
        return left_out is not None


def mark(path: Path | None, role: str) -> None:
    """Note a start in a log file, which is kept over starts."""
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(f"{MARK} {time.strftime('%Y-%m-%d %H:%M:%S')} {role} starts\n")


def rotate(path: Path, limit: int, kept: int) -> bool:
    """Empty a log file that has reached `limit` bytes, after copying it to `path`.1; return whether it did.

    Older copies move up, to .2 and so on; `kept` stay. Without space for a copy the file is emptied all the same.
    """
    try:
        if path.stat().st_size < limit:
            return False
    except OSError:
        return False
    copies = [path.with_name(f"{path.name}.{number}") for number in range(1, kept + 1)]
    with suppress(OSError):
        for newer, older in reversed(list(pairwise(copies))):
            if newer.exists():
                newer.replace(older)
        if copies:
            try:
                shutil.copyfile(path, copies[0])
            except OSError:
                copies[0].unlink(missing_ok=True)
                raise
    with suppress(OSError), path.open("r+b") as file:
        file.truncate(0)
    return True
