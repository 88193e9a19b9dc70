"""The requests of a batch by user: the newest is answered, the events of all are judged."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.messages import KnowledgeRequest, RankingRequest


class UserRequests:
    """All requests of one user in a batch.

    Only the newest request (highest count, the last one of equals) is answered. Requests with the same count share this
    answer: its cause is the earliest of them, and its reason is `event` if any of theirs is. The events of every
    request are judged, each with its own history.
    """

    def __init__(self, requests: Sequence[RankingRequest]) -> None:
        self.newest = max(enumerate(requests), key=lambda pair: (pair[1].count, pair[0]))[1]
        same = [request for request in requests if request.count == self.newest.count]
        self.caused_at = min(request.caused_at for request in same)
        self.reason = "event" if any(request.reason == "event" for request in same) else self.newest.reason
        # The newest first; an event that occurs in two requests is judged once.
        self.rows = [self.newest, *(r for r in requests if r is not self.newest and r.judged)]
        self.wanted_version = max(request.knowledge_version for request in requests)

    def repair(self, now: float) -> KnowledgeRequest:
        """Return the request to generate the user's damaged or missing knowledge again, in its version.

        Args:
            now: wall clock, seconds.
        """
        newest = self.newest
        return KnowledgeRequest(
            user_id=newest.user_id, version=max(1, self.wanted_version), reason="stale", history=newest.history,
            count=newest.count, event_id=newest.judged[-1].event_id if newest.judged else "",
            event_time=newest.event_time, caused_at=self.caused_at, requested_at=now)


def merge(requests: Sequence[RankingRequest]) -> list[UserRequests]:
    """Return the requests grouped by user, in order of each user's first request."""
    users: dict[str, list[RankingRequest]] = {}
    for request in requests:
        users.setdefault(request.user_id, []).append(request)
    return [UserRequests(group) for group in users.values()]


def in_parts(users: Sequence[UserRequests], most: int) -> list[list[UserRequests]]:
    """Return the users in parts with at most `most` rows to rank each; a user's rows stay together."""
    parts: list[list[UserRequests]] = []
    rows = 0
    for user in users:
        if not parts or rows + len(user.rows) > most:
            parts.append([])
            rows = 0
        parts[-1].append(user)
        rows += len(user.rows)
    return parts
