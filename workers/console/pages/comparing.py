"""What a page adds to the facts: lists side by side with a reason for each place, bytes as rows, shares, findings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from workers.views.facts import NamedItem, PastEvent, ShownList
from workers.views.summary import Minute, Problem

REFRESHES = {
    "cold_start": "the history became long enough", "drift": "the interest moved away from the knowledge",
    "contradiction": "the knowledge predicted worse than behaviour alone", "stale": "too old, or of an older model"}
LISTS = {
    "fused": "behaviour, what is known of items, and the user’s own knowledge",
    "items": "behaviour and what is known of items", "reference": "behaviour alone",
    "popular": "what others take now, for a user without history"}
_WARNINGS = ("Dead letters come in", "Knowledge is late")  # sections of the runbook
_WRITTEN = 70  # characters of what was written of an item; its own page has all
ROW = 16  # bytes
ROWS = 256


@dataclass(frozen=True, slots=True)
class PlaceRow:
    """A place in the lists: what was shown, and what behaviour alone would have shown.

    Args:
        before: place of the shown item in behaviour's list, from 1; None = it is not there.
        why: one line.
    """

    place: int
    shown: NamedItem | None
    reference: NamedItem | None
    before: int | None
    why: str


def side_by_side(shown: ShownList, history: Sequence[PastEvent], neighbours: Mapping[str, Collection[str]]
                 ) -> tuple[PlaceRow, ...]:
    """Return the two lists place by place.

    Args:
        history: newest first.
        neighbours: item of the list → items that people take with it, the closest first.
    """
    places = {one.item_id: place for place, one in enumerate(shown.reference, 1)}
    rows = []
    for at in range(max(len(shown.items), len(shown.reference))):
        item = shown.items[at] if at < len(shown.items) else None
        reference = shown.reference[at] if at < len(shown.reference) else None
        before = places.get(item.item_id) if item else None
        why = _why(item, before, at + 1, shown, history, neighbours) if item else ""
        rows.append(PlaceRow(at + 1, item, reference, before, why))
    return tuple(rows)


def _why(item: NamedItem, before: int | None, place: int, shown: ShownList, history: Sequence[PastEvent],
         neighbours: Mapping[str, Collection[str]]) -> str:
    knowledge = "knowledge" if shown.source == "fused" else "what is known of items"
    parts = []
    if before is None:
        parts.append(f"raised by {knowledge}")
    elif before > place:
        parts.append(f"raised by {knowledge} from place {before}")
    near = neighbours.get(item.item_id, ())
    if known := [event for event in history if event.item_id in near][:2]:
        parts.append("goes with " + " and ".join(event.title or event.item_id for event in known))
    if item.written:
        parts.append(item.written if len(item.written) <= _WRITTEN else item.written[:_WRITTEN].rstrip(" ,;") + "…")
    return "; ".join(parts)


def hex_rows(value: bytes) -> list[tuple[str, str, str]]:
    """Return the first bytes as rows: offset, hexadecimal, characters."""
    rows = []
    for start in range(0, min(len(value), ROW * ROWS), ROW):
        chunk = value[start:start + ROW]
        hexed = " ".join(f"{byte:02x}" for byte in chunk)
        letters = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in chunk)
        rows.append((f"{start:06x}", f"{hexed:<{3 * ROW - 1}}", letters))
    return rows


def plain(value: bytes | None, limit: int) -> str:
    """Return bytes as text in which nothing is hidden: control and direction characters are written out."""
    if value is None:
        return ""
    text = value[:limit].decode("utf-8", "backslashreplace")
    shown = "".join(one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode()
                    for one in text)
    return shown + ("…" if len(value) > limit else "")


def severity(problem: Problem) -> str:
    """Return "warning" for what is late or refused, "broken" for what does not work."""
    return "warning" if problem.section in _WARNINGS else "broken"


def summed(minutes: Sequence[Minute], what: str, meanings: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """Return a count by kind over all minutes: kind, number, meaning; the kinds with a meaning in their order first."""
    totals: dict[str, int] = {}
    for minute in minutes:
        for kind, number in getattr(minute, what).items():
            totals[kind] = totals.get(kind, 0) + number
    kinds = [*meanings, *(kind for kind in totals if kind not in meanings)]
    return [(kind, totals.get(kind, 0), meanings.get(kind, "")) for kind in kinds]
