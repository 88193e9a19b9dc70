"""Tracks which events have no answer yet. An answer is a recommendation that includes the event, or its dead letter."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping


class InFlight:
    """Unanswered events per user. Pure: takes offsets and counts, returns sending times.

    Args:
        counts: number of events each user has before the stream begins.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = dict(counts)
        self._waiting: dict[str, deque[tuple[int, float]]] = {}
        self._places: dict[tuple[int, int], tuple[str, float]] = {}
        self.total = 0

    def next_count(self, user: str) -> int:
        """Return the number of the user's next event, counting from 1."""
        return self._counts.get(user, 0) + 1

    def sent(self, user: str, at: float) -> None:
        """Record that an event was sent at wall-clock time `at`."""
        count = self._counts[user] = self.next_count(user)
        self._waiting.setdefault(user, deque()).append((count, at))
        self.total += 1

    def placed(self, user: str, at: float, partition: int, offset: int) -> None:
        """Record the partition and offset of the event that was sent at `at`."""
        self._places[partition, offset] = (user, at)

    def answered(self, user: str, count: int) -> list[float]:
        """Return the sending times of the events that a recommendation including `count` events answers."""
        waiting = self._waiting.get(user)
        out = []
        while waiting and waiting[0][0] <= count:
            out.append(waiting.popleft()[1])
            self.total -= 1
        if waiting is not None and not waiting:
            del self._waiting[user]
        return out

    def dead_lettered(self, partition: int, offset: int) -> str | None:
        """Record a dead letter and return the user whose event it was, or None if it was no event of this run.

        The user's later events move up by one number, because the dead one never enters the user's state.
        """
        user, at = self._places.get((partition, offset), ("", 0.0))
        waiting = self._waiting.get(user, deque())
        for index, (_, sent_at) in enumerate(waiting):
            if sent_at == at:
                rest = [(count - 1, when) for count, when in list(waiting)[index + 1:]]
                self._waiting[user] = deque([*list(waiting)[:index], *rest])
                if not self._waiting[user]:
                    del self._waiting[user]
                self._counts[user] -= 1
                self.total -= 1
                return user
        return None

    def oldest(self) -> float | None:
        """Return the sending time of the oldest unanswered event, or None."""
        return min((waiting[0][1] for waiting in self._waiting.values()), default=None)
