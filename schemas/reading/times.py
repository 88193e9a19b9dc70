"""One reading of an event's time, whatever form a producer or a file gives it: seconds since 1970, or a reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any
from zoneinfo import ZoneInfo

from schemas.reading.fields import bare

EARLIEST = 315_532_800.0  # 1980-01-01: no event log is older, and days, hours or minutes since 1970 read as seconds are
LATEST = 4_102_444_800.0  # 2100-01-01

# The ranges from 1980 to 2100 in these units do not touch, so the size of a number says which unit it is in.
_UNITS = (1.0, 1e3, 1e6, 1e9)  # per second: seconds, milliseconds, microseconds, nanoseconds
_COARSE = (("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0))
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_JAVA_ZONE = re.compile(r"^(.*?)(?:\[([^\[\]]{1,64})\])$")  # ZonedDateTime: 2025-11-27T19:00:00+01:00[Europe/Berlin]
_NAMED_ZONE = re.compile(r"^(.*\d)\s*([A-Za-z]+(?:/[A-Za-z0-9_+-]+)*)$")
_SHORT_OFFSET = re.compile(r"([+-]\d{2})$")
_UTC = {"z", "utc", "gmt", "ut", "zulu"}
_PARTS = (("seconds", "nanos"), ("epochSecond", "nano"), ("_seconds", "_nanoseconds"))
_NET = re.compile(r"/Date\((-?\d+)(?:[+-]\d{4})?\)/")  # .NET; the offset behind it says nothing of the moment
# What other programs print. Month and day are never both numbers, unless the year comes first. By hand, since strptime
# keeps five compiled forms, and these would be twenty.
_TIME = r"(?P<t>\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?: ?[APap][Mm])?)"
_PRINTED = tuple(map(re.compile, (
    rf"(?:[A-Za-z]{{3,9}},? )?(?P<b>[A-Za-z]{{3,9}}) +(?P<d>\d{{1,2}})(?:,? (?P<Y>\d{{4}}),?)?(?: {_TIME})?"
    r"(?: (?P<z>[+-]\d{4}))?(?: (?P<Y2>\d{4}))?",
    rf"(?P<d>\d{{1,2}})[ /-](?P<b>[A-Za-z]{{3,9}})[ /-](?P<Y>\d{{4}})(?:[: ]{_TIME})?(?: (?P<z>[+-]\d{{4}}))?",
    rf"(?P<Y>\d{{4}})([/.-])(?P<m>\d{{1,2}})\2(?P<d>\d{{1,2}})(?:[T ]{_TIME})?(?: ?(?P<z>[+-]\d{{4}}))?")))
_MONTHS = {name: number for number, name in enumerate(
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1)}
_EITHER_FIRST = re.compile(r"\d{1,2}([/.-])\d{1,2}\1\d{2,4}\b")
_HALVES = {"AM", "PM"}
_LONGEST = 100  # characters; the longest form above with a long zone name


def seconds(value: Any, earliest: float = EARLIEST, latest: float = LATEST) -> float:
    """Return a time as seconds since 1970.

    Args:
        value: a number in seconds, milliseconds, microseconds or nanoseconds since 1970 (its size says which), such a
            number as text, ISO 8601 text (`T` or a blank between date and time, `Z`, an offset, ` UTC`, or a zone's
            name behind it; UTC if there is none), a date (`2024-01-31`, `20240131`), or RFC 2822 text.
        earliest, latest: times outside are refused, seconds since 1970.

    Raises:
        ValueError: the value is no such time; the text says why, and which unit would fit. It never quotes a text.
    """
    value = _whole(bare(value))
    if isinstance(value, bool) or value is None:
        raise ValueError("no time")
    if isinstance(value, int | float):
        moment = _number(value, earliest)
    elif isinstance(value, datetime):
        moment = _checked(value if value.tzinfo else value.replace(tzinfo=UTC), earliest)
    elif isinstance(value, date):
        moment = _checked(datetime(value.year, value.month, value.day, tzinfo=UTC), earliest)
    elif isinstance(value, str):
        moment = _text(value.strip(), earliest)
    else:
        raise ValueError("neither a number nor a text")
    if moment > latest:
        spelt = _written(str(value).strip())
        raise ValueError(f"{_day(moment)} is ahead of the clock" + (f"; its digits look like {spelt}" if spelt else ""))
    return moment


def _whole(value: Any) -> Any:
    """Return a moment that is written in parts as one value: as Java, Firestore, Protobuf and MongoDB write it."""
    try:
        if isinstance(value, dict):
            if "$date" in value:
                return bare(value["$date"])
            for whole, parts in _PARTS:
                if whole in value:
                    return float(value[whole]) + float(value.get(parts) or 0) / 1e9
        elif isinstance(value, list | tuple) and 3 <= len(value) <= 7 and all(type(part) is int for part in value):
            return datetime(*value[:6]) + timedelta(microseconds=value[6] // 1000 if len(value) == 7 else 0)
        elif isinstance(value, Decimal):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    return value


def _text(text: str, earliest: float) -> float:
    if not text:
        raise ValueError("empty")
    if len(text) > _LONGEST:
        raise ValueError(f"{len(text)} characters are no time")
    if text[4:5] == "-":  # nearly always ISO 8601 as Python reads it; the rest of this file takes 6 µs longer
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return _checked(moment if moment.tzinfo else moment.replace(tzinfo=UTC), earliest)
    if (match := _NET.fullmatch(text)) is not None:
        return _number(int(match[1]), earliest)
    if _NUMBER.fullmatch(text):
        digits = _digits_as_date(text)
        return _checked(digits, earliest) if digits else _number(float(text), earliest)
    return _checked(_moment(text), earliest)


def _number(value: float, earliest: float) -> float:
    if isinstance(value, int):
        if abs(value) >= 10**20:
            raise ValueError("too large for a time in nanoseconds")
        if (day := _digits_as_date(str(value))) is not None:
            return _checked(day, earliest)
        value = float(value)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    for unit in _UNITS:
        if earliest <= value / unit < LATEST:
            return value / unit
    raise ValueError(_why_not(value, earliest))


def _why_not(value: float, earliest: float) -> str:
    """Return why a number is no time since 1970, with the unit or form in which it would be one."""
    bounds = f"{_day(earliest)} and {_day(LATEST)}"
    for name, unit in _COARSE:
        if max(earliest, EARLIEST) <= value * unit < LATEST:
            return f"no time between {bounds} in seconds or a finer unit; in {name} it would be {_day(value * unit)}"
    if value == int(value) and _written(str(int(value))):
        return f"no time between {bounds}; its digits look like a date: send {_written(str(int(value)))}"
    reason = f"no time between {bounds} in seconds, milliseconds, microseconds or nanoseconds"
    if 0 <= value < earliest:
        reason += "; for times that do not count from 1970 set FRESHET_EVENTS_EARLIEST=1970-01-01"
    return reason


def _digits_as_date(text: str) -> datetime | None:
    """Return the day that eight digits (YYYYMMDD) spell; read as seconds they would be in August 1970."""
    if len(text) != 8 or not text.isdecimal() or text[:2] not in {"19", "20"}:
        return None
    try:
        return datetime(int(text[:4]), int(text[4:6]), int(text[6:]), tzinfo=UTC)
    except ValueError:
        return None


def _written(text: str) -> str:
    """Return digits such as 20240131120000 as ISO 8601, "" if they spell no moment."""
    for length, form in ((14, "%Y%m%d%H%M%S"), (12, "%Y%m%d%H%M"), (10, "%Y%m%d%H")):
        if len(text) == length and text[:2] in {"19", "20"}:
            try:
                return datetime.strptime(text, form).replace(tzinfo=UTC).isoformat()
            except ValueError:
                return ""
    return ""


def _moment(text: str) -> datetime:
    """Return the moment that a text spells; UTC where it names no zone."""
    zone = ""
    if (match := _JAVA_ZONE.match(text) or _NAMED_ZONE.match(text)) and match[2].upper() not in _HALVES:
        text, zone = match[1].strip(), match[2]
    text = text.replace(",", ".") if text.count(",") == 1 and ", " not in text else text
    try:
        moment = datetime.fromisoformat(text.replace("t", "T"))
    except ValueError:
        moment = _other_forms(text)
    # An offset in the text counts; a zone's name beside it says the same once more.
    return moment if moment.tzinfo else moment.replace(tzinfo=_zone(zone))


def _other_forms(text: str) -> datetime:
    try:
        if _SHORT_OFFSET.search(text) and ":" in text:  # Postgres: 2024-01-31 12:00:00.5+00
            return datetime.fromisoformat(text + ":00")
        if " " in text.strip() and text[-5:-4] in {"+", "-"} and text[:4].isdecimal():  # a blank before the offset
            return datetime.fromisoformat(text.replace(" " + text[-5:], text[-5:]))
    except ValueError:
        pass
    # JavaScript writes "GMT+0000 (Coordinated Universal Time)", Java and `date` put a zone before the year.
    bare_text = re.sub(r" (UTC|GMT)(?=[ +-])", " ", re.sub(r" \([^()]*\)$", "", text)).replace("  ", " ")
    for form in _PRINTED:
        if (match := form.fullmatch(bare_text)) is not None and (moment := _printed(match.groupdict())) is not None:
            return moment
    try:
        return parsedate_to_datetime(text)  # RFC 2822, as in mail and HTTP
    except (ValueError, TypeError, IndexError, OverflowError):
        raise ValueError("neither a number nor ISO 8601 text, such as 2026-01-31T12:00:00Z" + (
            "; is the month or the day first? put the year there" if _EITHER_FIRST.match(text) else "")) from None


def _printed(found: Mapping[str, str | None]) -> datetime | None:
    """Return the moment that the parts of a printed one name, None if they name none."""
    year, month = found.get("Y") or found.get("Y2"), found.get("m") or _MONTHS.get((found.get("b") or "")[:3].lower())
    if year is None or month is None:
        return None
    clock = (found["t"] or "0:00").upper()
    half = clock[-2:] if clock[-2:] in _HALVES else ""
    hour, minute, *rest = clock.removesuffix(half).strip().split(":")
    if half and not 1 <= int(hour) <= 12:
        return None
    hours = int(hour) % 12 + 12 * (half == "PM") if half else int(hour)
    try:
        day = datetime(int(year), int(month), int(found["d"] or 0), hours, int(minute))
        zone = datetime.strptime(found["z"] or "+0000", "%z").tzinfo if found["z"] else None
    except ValueError:
        return None
    second = float(rest[0]) if rest else 0.0
    return (day + timedelta(seconds=second)).replace(tzinfo=zone) if second < 60 else None


def _zone(name: str) -> tzinfo:
    if not name or name.lower() in _UTC:
        return UTC
    if "/" in name:
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            pass
    raise ValueError("its time zone is unknown; an offset such as +01:00 says the same")


def _checked(moment: datetime, earliest: float) -> float:
    try:
        value = moment.timestamp()
    except (OverflowError, ValueError):  # year 1 with an offset
        raise ValueError("too far from today") from None
    if not earliest <= value < LATEST:
        raise ValueError(f"{moment.date().isoformat()} is not between {_day(earliest)} and {_day(LATEST)}")
    return value


def _day(value: float) -> str:
    return datetime.fromtimestamp(value, UTC).date().isoformat()
