"""The usable records of a batch: whose they are, and what the planner takes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from schemas.codec import decode
from schemas.errors import PoisonError
from schemas.messages import Erasure, Judgement, KnowledgeUpdate, UserSeen
from streams.profile.decoding import Unusable

M = TypeVar("M", Judgement, KnowledgeUpdate, UserSeen, Erasure)


@dataclass(slots=True)
class Work:
    """Usable records of a batch as aligned lists: their users, what the planner takes, the records."""

    users: list[str]
    inputs: list[Any]
    records: list[Any]

    def only(self, users: set[str]) -> Work:
        """Return the part of these users."""
        kept = [n for n, user in enumerate(self.users) if user in users]
        return Work([self.users[n] for n in kept], [self.inputs[n] for n in kept], [self.records[n] for n in kept])

    def without(self, places: set[int]) -> Work:
        """Return all but the records at these places."""
        kept = [n for n in range(len(self.users)) if n not in places]
        return Work([self.users[n] for n in kept], [self.inputs[n] for n in kept], [self.records[n] for n in kept])


def parse(
    model: type[M], records: Sequence[Any], bad: list[Unusable], build: Callable[[M, Any], Any],
) -> Work:
    """Return the messages in `records` as the planner takes them; unreadable records go to `bad`."""
    work = Work([], [], [])
    for record in records:
        try:
            message = decode(model, record.value)
        except PoisonError as error:
            bad.append(Unusable(record, "unreadable", error.reason))
            continue
        work.users.append(message.user_id)
        work.inputs.append(build(message, record))
        work.records.append(record)
    return work
