"""A statistic on its way to a threshold, as an SVG drawing for a page. Pure text, no library."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 640, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 18, 22


def curve(points: Sequence[tuple[int, float]], threshold: float, label: str) -> Markup:
    """Return the drawing; "" for fewer than two points.

    Args:
        points: (event, value), in order.
        threshold: drawn as a dashed line.
        label: says in words what is drawn, for people who do not see it.
    """
    if len(points) < 2 or threshold <= 0:
        return Markup("")
    first, last = points[0][0], points[-1][0]
    top = 1.12 * max(threshold, *(value for _, value in points))

    def at(event: float, value: float) -> str:
        x = _LEFT + (event - first) / max(1, last - first) * (WIDTH - _LEFT - _RIGHT)
        y = HEIGHT - _BOTTOM - value / top * (HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(at(*point) for point in points)
    limit, end = at(first, threshold).split(",")[1], at(*points[-1]).split(",")
    base = HEIGHT - _BOTTOM
    crossed = points[-1][1] >= threshold
    return Markup(  # `format` escapes what goes in
        '<svg class="curve" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
        '<polygon class="area" points="{left},{base} {line} {x},{base}"/>'
        '<line class="limit" x1="{left}" x2="{right}" y1="{limit}" y2="{limit}"/>'
        '<text x="{left}" y="{above:.1f}">threshold {threshold:.1f}</text>'
        '<polyline class="line" points="{line}"/><circle class="{mark}" cx="{x}" cy="{y}" r="5"/>'
        '<text x="{left}" y="{foot}">event {first}</text>'
        '<text x="{right}" y="{foot}" text-anchor="end">event {last}</text></svg>',
    ).format(w=WIDTH, h=HEIGHT, label=label, left=_LEFT, right=WIDTH - _RIGHT, base=base, line=line, x=end[0], y=end[1],
             limit=limit, above=float(limit) - 5, threshold=threshold, mark="crossed" if crossed else "below",
             foot=HEIGHT - 6, first=first, last=last)
