"""Pictures of a few hundred points as inline SVG: small charts in tables and cards.

Server-rendered, since a page without a script then shows them, prints them and reads them out. Colours are classes
of the style sheet, so that light and dark follow the system; a `style` attribute would be refused by the pages' own
Content-Security-Policy. Whatever is text passes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape


def tag(name: str, text: object = "", **attributes: object) -> Markup:
    """Return an element; `_` in names of attributes stands for `-`, and a trailing one for nothing."""
    listed = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
                     for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{listed}>{escape(text)}</{name}>")  # noqa: S704 - every part is escaped


def picture(width: float, height: float, parts: Iterable[Markup], label: str, kind: str) -> Markup:
    """Return the SVG element. `label` is what a screen reader says in its place; `kind` its class."""
    return tag("svg", Markup("").join(parts), viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label,
               class_=f"picture {kind}", preserveAspectRatio="none" if kind == "spark" else None)


def spark(values: Sequence[float], label: str) -> Markup:
    """Return a line of the newest values, oldest first, on a base of 0."""
    if len(values) < 2:
        return Markup("")
    width, height = 240.0, 40.0
    top = max(*values, 1e-9)
    points = [(width * at / (len(values) - 1), height - 2 - (height - 5) * max(0.0, value) / top)
              for at, value in enumerate(values)]
    area = [(0.0, height), *points, (width, height)]
    return picture(width, height, [
        tag("path", d=path(area) + "Z", class_="area"),
        tag("path", d=path(points), class_="line", vector_effect="non-scaling-stroke")], label, "spark")


def whisker(low: float, middle: float, high: float, reach: float, label: str) -> Markup:
    """Return an interval on an axis from −reach to reach with its zero."""
    width, height = 160.0, 18.0

    def x(value: float) -> float:
        return width / 2 + (width / 2 - 5) * max(-1.0, min(1.0, value / max(reach, 1e-12)))

    side = "good" if low > 0 else "bad" if high < 0 else "open"
    return picture(width, height, [
        tag("line", x1=width / 2, x2=width / 2, y1=1, y2=height - 1, class_="zero"),
        tag("line", x1=x(low), x2=max(x(high), x(low) + 1), y1=height / 2, y2=height / 2, class_=f"whisker {side}"),
        tag("circle", cx=x(middle), cy=height / 2, r=3.5, class_=f"point {side}")], label, "small")


def bar(share: float, label: str) -> Markup:
    """Return a bar of a share between 0 and 1."""
    width, height = 120.0, 8.0
    return picture(width, height, [
        tag("rect", x=0, y=0, width=width, height=height, rx=2, class_="track"),
        tag("rect", x=0, y=0, width=width * max(0.0, min(1.0, share)), height=height, rx=2, class_="fill")],
        label, "bar")


def uplift(points: Sequence[Mapping[str, Any]], label: str) -> Markup:
    """Return an experiment's uplift with its interval by number of users.

    Args:
        points: as `RunningExperiment.figures` has them: users, uplift, low, high.
    """
    points = [one for one in points if one["uplift"] is not None]
    if len(points) < 2:
        return Markup("")
    width, height, left, foot = 720.0, 240.0, 58.0, 26.0
    # The first users' interval is so wide that it would flatten the rest.
    framed = points[len(points) // 4]
    high, low = 1.1 * max(framed["high"], 1e-4), 1.1 * min(framed["low"], -1e-4)
    first, last = points[0]["users"], max(points[-1]["users"], points[0]["users"] + 1)

    def x(users: float) -> float:
        return left + (width - left - 8) * (users - first) / (last - first)

    def y(value: float) -> float:
        return 6 + (height - foot - 12) * (high - max(low, min(high, value))) / (high - low)

    upper = [(x(one["users"]), y(one["high"])) for one in points]
    lower = [(x(one["users"]), y(one["low"])) for one in reversed(points)]
    parts = [tag("path", d=path([*upper, *lower]) + "Z", class_="area"),
             tag("path", d=path([(x(one["users"]), y(one["uplift"])) for one in points]), class_="line"),
             tag("line", x1=left, x2=width - 8, y1=y(0), y2=y(0), class_="zero")]
    for value in ticks(low, high, 4):
        parts.append(tag("text", f"{value:+.3g}" if value else "0", x=left - 8, y=y(value) + 4, class_="tick end"))
        parts.append(tag("line", x1=left, x2=width - 8, y1=y(value), y2=y(value), class_="grid"))
    for users in ticks(first, last, 6):
        parts.append(tag("text", f"{users:,.0f}", x=x(users), y=height - 8, class_="tick middle"))
    parts.append(tag("text", "users", x=width - 8, y=height - foot - 10, class_="tick end"))
    return picture(width, height, parts, label, "wide")


def path(points: Iterable[tuple[float, float]]) -> str:
    """Return the path through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers between two, about so many."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    raw = (high - low) / max(1, about)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw * 0.8)
    return [round(step * number, 12) + 0.0 for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
