"""Durations and ages in one unit, precise enough to compare figures.

humanize's wording does not fit a report: `naturaldelta` makes "2 hours" of 90 minutes and "a moment" of 0.35 s,
`precisedelta` two units of most durations and "0.3 seconds" of 0.35 s.
"""

from __future__ import annotations

_UNITS = (("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


def duration(seconds: float | None) -> str:
    """Return a duration to one decimal of the largest unit it has two of: "350 ms", "1.2 s", "90 min", "36 h".

    Args:
        seconds: None = not known.
    """
    if seconds is None:
        return "–"
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{_figure(seconds / size)} {unit}"
    return f"{_figure(seconds)} s" if seconds >= 0.9995 else f"{seconds * 1000:.0f} ms"


def ago(now: float, then: float) -> str:
    """Return an age, "3 days ago"; clocks of two machines may differ, so nothing is from the future."""
    return f"{duration(max(0.0, now - then))} ago"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}".removesuffix(".0")
