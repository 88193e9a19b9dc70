"""A user's history as one picture: what they did, when their knowledge was made again, drift, bet and trust.

The horizontal axis is the number of the event, not the time: people come in bursts, and decisions are made per event.
Times stand under the axis. The lanes are aligned, so that a refresh can be read down to what caused it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import zip_longest

from markupsafe import Markup

from workers.console.pages.drawing import path, picture, tag, ticks
from workers.views.facts import Refresh, StateStep, UserPage

WIDTH, LEFT, RIGHT = 960.0, 92.0, 14.0
_MARKS = {"cold_start": "○", "drift": "△", "contradiction": "✕", "stale": "◇"}
_STRONG = 1.0  # nats of a margin that fill its lane; most are below .1, so the lane shows their square root
_GAP = 12.0  # between lanes

X = Callable[[float], float]


def mark(reason: str) -> str:
    """Return the sign of a reason for a refresh, the same in the picture and in tables."""
    return _MARKS.get(reason, "·")


def history(page: UserPage) -> Markup:
    """Return the picture, empty where there is nothing to draw."""
    events = page.state.history if page.state else ()
    # What is older than the history that is kept would only make the rest small.
    low = min((event.count for event in events), default=0)
    steps = [step for step in page.steps if step.count >= low]
    refreshes = [one for one in page.refreshes if one.count >= low]
    before = max((one for one in page.refreshes if one.count < low), key=lambda one: one.version, default=None)
    counts = [one.count for some in (events, steps, refreshes) for one in some]
    if not counts:
        return Markup("")
    low, high = min(counts), max(counts)

    def x(count: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((count - low + 0.5) / (high - low + 1))

    lanes: list[tuple[str, float, Callable[[float, float], list[Markup]]]] = [
        ("knowledge", 44.0, lambda top, height: _versions(refreshes, before, x, top, height)),
        ("events", 56.0, lambda top, height: _events(page, x, top, height))]
    if steps and page.state:
        drift, trust = page.state.drift, page.state.trust
        lanes += [
            ("drift", 58.0, lambda top, height: _line(
                [(step.count, step.drift) for step in steps], drift.threshold, "h", x, top, height)),
            ("bet on harm", 58.0, lambda top, height: _line(
                [(step.count, step.log_wealth) for step in steps], trust.log_limit, "log 1/α", x, top, height)),
            ("trust", 40.0, lambda top, height: _trust(steps, x, top, height))]
    parts: list[Markup] = []
    top = 6.0
    bottom = top + sum(height + _GAP for _, height, _ in lanes)
    for refresh in refreshes:
        parts.append(tag("line", x1=x(refresh.count), x2=x(refresh.count), y1=top + 30, y2=bottom - 8, class_="cause"))
    for name, height, draw in lanes:
        parts.append(tag("text", name, x=LEFT - 18, y=top + height / 2 + 4, class_="lane end"))
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=top + height, y2=top + height, class_="grid"))
        parts += draw(top, height)
        top += height + _GAP
    for count in ticks(low, high, 10):
        if count == int(count):
            parts.append(tag("text", f"{count:,.0f}", x=x(count), y=bottom + 8, class_="tick middle"))
    parts += _ends(page, x, bottom + 24)
    reasons = ", ".join(f"version {one.version} at event {one.count} for {one.reason.replace('_', ' ')}"
                        for one in refreshes) or "none"
    return picture(WIDTH, bottom + 30, parts, f"History of events {low:,} to {high:,}. Refreshes of knowledge: "
                   f"{reasons}. The tables below hold the same figures.", "history")


def _versions(refreshes: Sequence[Refresh], before: Refresh | None, x: X, top: float, height: float) -> list[Markup]:
    """Draw which version held from when to when, with the sign of its reason; `before` held when the picture begins."""
    parts = []
    made = sorted(refreshes, key=lambda one: (one.count, one.version))
    spans = [(LEFT, before)] if before else []
    spans += [(x(one.count), one) for one in made]
    base = top + height - 10
    for (start, one), after in zip_longest(spans, spans[1:]):
        stop = WIDTH - RIGHT if after is None else after[0]
        waits = one.generated_at is None
        parts.append(tag("line", x1=start, x2=stop, y1=base, y2=base, class_="span waits" if waits else "span"))
        if one is not before:
            sign = tag("text", mark(one.reason), x=start, y=top + 16, class_=f"mark {one.reason}")
            parts.append(tag("g", tag("title", f"version {one.version}: {one.reason.replace('_', ' ')}") + sign))
        if stop - start > 22:
            parts.append(tag("text", f"v{one.version}", x=start + 8, y=base - 5, class_="tick"))
    return parts


def _events(page: UserPage, x: X, top: float, height: float) -> list[Markup]:
    """Draw a bar per event: up where knowledge had made it likelier, down where less likely; a dot if not judged."""
    middle, half = top + height / 2, height / 2 - 3
    width = max(1.0, min(7.0, (x(1) - x(0)) * 0.6))
    margins = {one.count: one.value for one in page.margins}
    parts = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=middle, y2=middle, class_="zero")]
    for event in reversed(page.state.history if page.state else ()):
        said = f"event {event.count}: {event.title or event.item_id}"
        margin = margins.get(event.count)
        if margin is None:
            shape = tag("circle", cx=x(event.count), cy=middle, r=min(2.5, 1 + width / 3), class_="event")
        else:
            said += f", {margin:+.3f} nats"
            size = max(1.5, half * min(1.0, abs(margin) / _STRONG) ** 0.5)
            shape = tag("rect", x=x(event.count) - width / 2, y=middle - (size if margin > 0 else 0.0), width=width,
                        height=size, class_="gain" if margin > 0 else "loss")
        parts.append(tag("g", tag("title", said) + shape))
    return parts


def _line(points: Sequence[tuple[int, float]], threshold: float | None, name: str, x: X, top: float, height: float
          ) -> list[Markup]:
    """Draw a statistic and the threshold at which it decides something."""
    low = min(0.0, *(found for _, found in points))
    high = max(threshold or 0.0, *(found for _, found in points), low + 1e-6) * 1.08

    def y(found: float) -> float:
        return top + height - 3 - (height - 6) * (found - low) / (high - low)

    drawn = [(x(count), y(found)) for count, found in points]
    parts = [tag("path", d=path(drawn), class_="line")] if len(drawn) > 1 else []
    parts.append(tag("circle", cx=drawn[-1][0], cy=drawn[-1][1], r=2.5, class_="point good"))
    if threshold is not None:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(threshold), y2=y(threshold), class_="threshold"))
        parts.append(tag("text", f"{name} = {threshold:.3g}", x=LEFT + 4, y=y(threshold) + 13, class_="tick"))
    return parts


def _trust(steps: Sequence[StateStep], x: X, top: float, height: float) -> list[Markup]:
    """Draw trust between 0 and 1 as steps."""
    def y(found: float) -> float:
        return top + height - 2 - (height - 6) * found

    points: list[tuple[float, float]] = []
    for step in steps:
        if points:
            points.append((x(step.count), points[-1][1]))
        points.append((x(step.count), y(step.trust)))
    points.append((WIDTH - RIGHT, points[-1][1]))
    area = [(points[0][0], top + height), *points, (points[-1][0], top + height)]
    return [tag("path", d=path(area) + "Z", class_="area"), tag("path", d=path(points), class_="line"),
            tag("text", "1", x=LEFT - 5, y=top + 9, class_="tick end"),
            tag("text", "0", x=LEFT - 5, y=top + height, class_="tick end")]


def _ends(page: UserPage, x: X, y: float) -> list[Markup]:
    """Draw the times of the first and the last event under their places."""
    events = page.state.history if page.state else ()
    parts = []
    for at, (event, side) in enumerate(zip((events[-1:] + events[:1])[:2], ("start", "end"), strict=False)):
        if at == 0 or len(events) > 1:
            edge = LEFT if side == "start" else WIDTH - RIGHT
            parts.append(tag("text", moment(event.event_time), x=edge, y=y, class_=f"tick {side}"))
    return parts


def moment(at: float) -> str:
    """Return a time in UTC, "" for what no calendar holds."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%d %b %Y %H:%M")
    except (OverflowError, ValueError, OSError):
        return ""
