"""What is still on its way when a user is erased, and must not bring the user back. Pure.

Whatever was sent before the erasure belongs to the user as he was: events that were applied but whose offset was not
committed when the process ended, margins and updates of workers that have not come to the erasure yet. What comes later
starts a new user. This is known while the process owns the partitions; if it ends, the erasure is either read again
together with what came before, or both are committed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from schemas.topics import JUDGEMENTS, KNOWLEDGE_UPDATES

LOG_APPEND_TIME = 1  # timestamp type of a record that the broker stamped
_ANSWERS = frozenset({JUDGEMENTS.name, KNOWLEDGE_UPDATES.name})  # topics whose writers end the old ones by a tombstone


class Forgotten:
    """Users erased lately: when, and which workers have not confirmed it yet.

    Args:
        most: users that are remembered; the oldest make room.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._at: OrderedDict[str, int] = OrderedDict()
        self._awaited: dict[str, set[str]] = {}

    def add(self, user: str, at_ms: int) -> None:
        """Note that the user was erased by a record written at `at_ms`, milliseconds by the broker's clock."""
        self._at[user] = max(at_ms, self._at.get(user, 0))
        self._at.move_to_end(user)
        self._awaited[user] = set(_ANSWERS)
        while len(self._at) > self._most:
            gone, _ = self._at.popitem(last=False)
            del self._awaited[gone]

    def clear(self) -> None:
        """Forget all: partitions are changing hands."""
        self._at.clear()
        self._awaited.clear()

    def sort_out(self, topic: str, records: Sequence[Any]) -> tuple[list[Any], int, int]:
        """Return the records that count, and how many were tombstones and how many are from before an erasure.

        A tombstone is a record with a key and without a value. Events are told by `is_old`, once they are decoded.

        Args:
            topic: plain name.
            records: aiokafka's, in order.
        """
        if topic not in _ANSWERS or not self._at:
            kept = [one for one in records if one.value is not None or not one.key]
            return kept, len(records) - len(kept), 0
        kept, tombstones, old = [], 0, 0
        for one in records:
            user = (one.key or b"").decode("utf-8", "surrogatepass")
            if one.value is None and one.key:
                tombstones += 1
                self._awaited.get(user, set()).discard(topic)
            elif topic in self._awaited.get(user, ()):
                old += 1
            else:
                kept.append(one)
        return kept, tombstones, old

    def is_old(self, user: str, record: Any) -> bool:
        """Return whether an event's record was written before its user was erased, by the broker's clock."""
        at = self._at.get(user)
        return at is not None and record.timestamp_type == LOG_APPEND_TIME and (record.timestamp or 0) < at

    def __contains__(self, user: str) -> bool:
        return user in self._at

    def __len__(self) -> int:
        return len(self._at)
