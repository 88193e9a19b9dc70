"""Keeps what a story of a user needs: the list before new knowledge, the list after it, and what it was made of.

Pure and small: two lists per refresh, and ids that are the same are one object: 4 MB for 3,000 refreshes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.messages import KnowledgeRequest, KnowledgeUpdate, Recommendation, RefreshReason


@dataclass(frozen=True, slots=True)
class Shown:
    """A list as it was shown.

    Args:
        reference: what behaviour alone would have shown.
        count: the user's events it includes.
        epsilon: the user's trust radius.
    """

    items: tuple[str, ...]
    reference: tuple[str, ...]
    count: int
    source: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class Requested:
    """A request for knowledge, with the history it is made of, oldest first."""

    version: int
    reason: RefreshReason
    count: int
    history: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One refresh of one user's knowledge, and the lists on both sides of it.

    Args:
        previous: the request before, None = it was the first.
        before: the last list with the knowledge before; for the first knowledge the last list without any.
        after: the first list with the new knowledge.
        took_s: seconds from the event that caused it to readable knowledge.
    """

    user: str
    asked: Requested
    previous: Requested | None
    before: Shown | None
    after: Shown
    took_s: float


class Diary:
    """Records messages as they come; `turns` has what became of the refreshes."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._ids: dict[str, str] = {}
        self._asked: dict[str, list[Requested]] = {}  # per user, ascending versions
        self._took: dict[tuple[str, int], float] = {}
        self._last: dict[str, Shown] = {}
        self._fused: dict[str, Shown] = {}
        self._version: dict[str, int] = {}  # newest knowledge in a list of the user's

    def requested(self, message: KnowledgeRequest) -> None:
        """Note a request; the same one again changes nothing."""
        asked = self._asked.setdefault(message.user_id, [])
        if not asked or message.version > asked[-1].version:
            asked.append(Requested(message.version, message.reason, message.count, self._same(message.history)))

    def refreshed(self, message: KnowledgeUpdate) -> None:
        """Note when knowledge was readable."""
        self._took.setdefault((message.user_id, message.version), message.generated_at - message.caused_at)

    def recommended(self, message: Recommendation) -> None:
        """Note a list; the first one with a new version of the user's knowledge completes a turn."""
        user, version = message.user_id, message.knowledge_version
        shown = Shown(self._same(item.item_id for item in message.items), self._same(message.reference), message.count,
                      message.source, message.epsilon)
        if message.source == "fused":
            if version > self._version.get(user, 0):
                self._version[user] = version
                earlier = [asked for asked in self._asked.get(user, ()) if asked.version <= version]
                if earlier and earlier[-1].version == version:
                    previous = earlier[-2] if len(earlier) > 1 else None
                    self.turns.append(Turn(user, earlier[-1], previous, self._fused.get(user) or self._last.get(user),
                                           shown, self._took.get((user, version), 0.0)))
            self._fused[user] = shown
        self._last[user] = shown

    def _same(self, ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(self._ids.setdefault(id_, id_) for id_ in ids)
