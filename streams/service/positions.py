"""Where to read on: what a committed offset is worth when the log under it may be shorter, or another one. Pure.

An offset counts records within one *life* of a partition's log. A topic that was deleted and created again, a log that
lost its end or was restored from a copy starts another life, in which old offsets name other records.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

# What was found at a partition, and the name it is counted under.
Finding = Literal["resumed", "started", "forgotten", "expired", "cut", "recreated"]


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a partition's log.

    Args:
        topic_id: the broker's id of the topic; "" = it tells none (Kafka before 2.8).
        cut: how often the log was found shorter than what was committed.
    """

    topic_id: str = ""
    cut: int = 0

    def __str__(self) -> str:
        """Return the text that is kept with a committed offset."""
        return f"{self.topic_id}/{self.cut}"

    @classmethod
    def parse(cls, text: str | None) -> Life | None:
        """Return the life in the metadata of a committed offset, None if none is named there.

        An older Freshet and other tools leave the metadata empty, and the embedded broker does not keep it.
        """
        topic_id, slash, cut = (text or "").rpartition("/")
        return cls(topic_id, int(cut)) if slash and cut.isascii() and cut.isdigit() else None

    @property
    def token(self) -> int:
        """A number for this life that user states keep with their source offset, 1 to 2⁶³ − 1; 0 = nothing known."""
        if not self.topic_id and not self.cut:
            return 0
        return int.from_bytes(hashlib.blake2b(str(self).encode(), digest_size=8).digest()) >> 1 or 1


@dataclass(frozen=True, slots=True)
class Position:
    """Where a partition is read on.

    Args:
        missed: offsets between the committed one and the oldest left, at most so many records were never read.
    """

    offset: int
    life: Life
    finding: Finding
    missed: int = 0


def decide(
    committed: int | None, kept: Life | None, topic_id: str, start: int, end: int, *, processed: bool = False,
) -> Position:
    """Return where to read on.

    Where an offset cannot be trusted it is the oldest record: reading twice changes no state, skipping loses events.

    Args:
        committed: next offset to read as committed by the group, None = none.
        kept: the life it was committed in, None = not known.
        topic_id: of the topic as it is now, "" = not known.
        start: offset of the oldest record.
        end: offset after the newest one.
        processed: there are states, so records were processed and committed before.
    """
    known = kept or Life(topic_id)
    if topic_id and known.topic_id and known.topic_id != topic_id:
        return Position(start, Life(topic_id), "recreated")
    now = Life(topic_id or known.topic_id, known.cut)
    if committed is None:
        return Position(start, now, "forgotten" if processed and end > start else "started")
    if committed > end:
        return Position(start, Life(now.topic_id, now.cut + 1), "cut")
    if committed < start:
        return Position(start, now, "expired", start - committed)
    return Position(committed, now, "resumed")


def explain(topic: str, partition: int, committed: int | None, end: int, position: Position) -> str:
    """Return a sentence for the operator; "" where nothing is unusual."""
    where, at = f"{topic}[{partition}]", position.offset
    again = f"reading from its oldest record, offset {at}; what was applied before is recognised by its event id"
    match position.finding:
        case "expired":
            return (f"{where}: the broker deleted offsets {committed} to {at - 1} before they were read, and their "
                    f"records are lost to Freshet; reading on at {at}. Give the topic a longer retention.ms, and "
                    "watch the lag of its consumer group")
        case "cut":
            return (f"{where} ends at offset {end}, before the committed offset {committed}: the broker lost records "
                    f"or was restored from a copy; {again}")
        case "recreated":
            return f"{where}: the topic was deleted and created again since offset {committed} was committed; {again}"
        case "forgotten":
            return (f"{where}: no offset is committed, though there are user states: the group's offsets expired "
                    f"(offsets.retention.minutes of the broker) or were deleted; {again}")
        case _:
            return ""
