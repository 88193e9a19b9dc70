"""Templates and their filters: plain data in, a page out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from schemas.calibration import LABELS
from workers.console.pages import comparing, drawing, timeline
from workers.terminal.durations import ago, duration
from workers.views.facts import JudgedMargin, Letter
from workers.views.summary import LiveQuality, Minute, PartWorth

HERE = Path(__file__).parent
HTMX = "htmx-4.0.1.min.js"
MENU = (("overview", "/", "Overview"), ("letters", "/dead-letters", "Dead letters"), ("models", "/models", "Models"),
        ("experiments", "/experiments", "Experiments"), ("settings", "/settings", "Settings"))


def render(template: str, page: str, *, writable: bool, **values: Any) -> str:
    """Return a page as HTML.

    Args:
        template: its name, without ending.
        page: which entry of the menu is the current one, "" = none.
        writable: whether a token is set, so that actions are offered.
    """
    return _templates().get_template(f"{template}.html.j2").render(
        page=page, menu=MENU, htmx=HTMX, stamp=_stamp(), writable=writable, **values)


@cache
def _stamp() -> str:
    """Return what changes with the style sheet, so that browsers ask for the new one."""
    return hashlib.blake2b((HERE / "static" / "console.css").read_bytes(), digest_size=4).hexdigest()


@cache
def _templates() -> Environment:
    made = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "count": _count, "rate": _rate, "short": _short, "number": _short, "decimals": _decimals, "duration": duration,
        "ago": lambda then, now: ago(now, then), "moment": timeline.moment, "iso": _iso,
        "clock": lambda at: _iso(at)[11:19], "exp": _exp,
        "coded": _coded,
        "sentence": _sentence, "severity": comparing.severity, "part": lambda name: LABELS.get(name, name),
        "words": lambda text: str(text).replace("_", " "), "mark": timeline.mark, "listed": _listed,
        "user_url": lambda id_: address("/user", id_), "item_url": lambda id_: address("/item", id_),
        "replay_url": lambda id_: address("/user/events.csv", id_),
        "letter_url": lambda number: f"/dead-letters/{number}",
        "place": _place, "plain": comparing.plain, "hex_rows": comparing.hex_rows, "by_count": _by_count,
        "meaning": lambda source: comparing.LISTS.get(source, source),
        "refreshes": lambda minutes: comparing.summed(minutes, "refreshes", comparing.REFRESHES),
        "stands": lambda minutes: comparing.summed(minutes, "lists", comparing.LISTS), "lists": _lists,
        "spark": drawing.spark, "bar": drawing.bar, "part_picture": _part_picture,
        "gain_picture": _gain_picture,
        "uplift_picture": lambda path: drawing.uplift(path, "Uplift with its interval by number of users"),
        "history": timeline.history,
    }
    return made


def address(path: str, id_: str) -> str:
    """Return the address of an id's page. In the query, since browsers shorten paths with parts like `..`."""
    return f"{path}?id={quote(id_, safe='', errors='replace')}"


def _coded(text: str) -> Markup:
    """Return text whose parts between backticks are code, as findings have them."""
    parts = str(text).split("`")
    return Markup("").join(drawing.tag("code", part) if at % 2 and at < len(parts) - 1 else escape(part)
                           for at, part in enumerate(parts))


def _sentence(text: str) -> str:
    """Return text with a capital at its beginning and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _rate(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}" if number >= 100 or number == 0 else f"{number:.1f}"


def _short(number: float | None) -> str:
    """Return a number to three figures: 1,234 → 1.23 k."""
    if number is None or not math.isfinite(number):
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _decimals(number: Any, digits: int) -> str:
    return f"{number:.{digits}f}" if isinstance(number, int | float) else "–"


def _exp(number: float) -> float:
    return math.exp(min(number, 700.0))


def _iso(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return ""


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _place(letter: Letter) -> str:
    return f"{letter.topic}/{letter.partition}/{letter.offset}"


def _by_count(margins: Iterable[JudgedMargin]) -> dict[int, float]:
    return {one.count: one.value for one in margins}


def _lists(minutes: Iterable[Minute]) -> list[int]:
    return [sum(minute.lists.values()) for minute in minutes]


def _gain_picture(found: LiveQuality) -> Markup:
    reach = max(abs(found.low), abs(found.high))
    return drawing.whisker(found.low, found.served - found.reference, found.high, reach,
                           f"{found.low:+.4f} to {found.high:+.4f}")


def _part_picture(part: PartWorth, parts: Sequence[PartWorth]) -> Markup:
    reach = max((max(abs(one.low), abs(one.high)) for one in parts), default=0.0)
    return drawing.whisker(part.low, part.gain, part.high, reach, f"{part.low:+.4f} to {part.high:+.4f}")
