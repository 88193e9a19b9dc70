"""Messages as the roles send them, for tests of the views."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from schemas.catalogue.item import CatalogueItem
from schemas.codec import encode
from schemas.messages import (
    DeadLetter,
    Judgement,
    KnowledgeRequest,
    KnowledgeUpdate,
    Margin,
    Recommendation,
    ScoredItem,
)
from schemas.topics import (
    CATALOGUE,
    CHANGELOG,
    DEAD_LETTERS,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RECOMMENDATIONS,
)
from streams.profile.state import UserState, dumps
from workers.views.reading.folding import LiveRecord

T0 = 1_700_000_000.0


def recommendation(
    user: str = "u1", items: tuple[str, ...] = ("i1", "i2"), version: int = 0, **more: Any,
) -> Recommendation:
    """A list that shows `items`; behaviour alone would show i2, i3."""
    fields: dict[str, Any] = {
        "source": "fused" if version else "reference", "reason": "event", "lagrange": 1.5 if version else None,
        "kl": 0.1, "epsilon": 0.2, "knowledge_age_s": None, "knowledge_behind": None, "model_version": "v1",
        "event_time": T0, "count": 3, "caused_at": T0, "requested_at": T0 + 0.5, "ranked_at": T0 + 1}
    return Recommendation(
        user_id=user, items=[ScoredItem(item_id=item, score=-float(n)) for n, item in enumerate(items)],
        reference=["i2", "i3"], knowledge_version=version, **fields | more)


def request(user: str = "u1", version: int = 1, **more: Any) -> KnowledgeRequest:
    fields: dict[str, Any] = {"reason": "cold_start", "history": ["i1"], "count": 3, "event_id": "e3", "event_time": T0,
                              "caused_at": T0, "requested_at": T0 + 1, "priority": 0.25}
    return KnowledgeRequest(user_id=user, version=version, **fields | more)


def update(user: str = "u1", version: int = 1, **more: Any) -> KnowledgeUpdate:
    fields: dict[str, Any] = {"model_version": "v1", "reason": "cold_start", "count": 3, "event_time": T0,
                              "history_hash": "", "caused_at": T0, "generated_at": T0 + 4}
    return KnowledgeUpdate(user_id=user, version=version, **fields | more)


def judgement(user: str = "u1", *counts: int, value: float = 0.5) -> Judgement:
    return Judgement(
        user_id=user, model_version="v1", event_time=T0, judged_at=T0 + 2,
        margins=[Margin(event_id=f"e{n}", item_id=f"i{n}", count=n, value=value, knowledge_version=1) for n in counts])


def letter(offset: int = 7, **more: Any) -> DeadLetter:
    fields: dict[str, Any] = {"topic": "behaviour-events", "partition": 1, "offset": offset, "reason": "not JSON",
                              "value": "e3sg", "key": "dTE=", "role": "streams", "failed_at": T0}
    return DeadLetter(**fields | more)


def item(item_id: str = "i1", **more: Any) -> CatalogueItem:
    return CatalogueItem(item_id=item_id, **more)


def state(*items: str, **more: Any) -> UserState:
    counts = list(range(1, len(items) + 1))
    return UserState(items=list(items), times=[T0 + n for n in counts], types=["view"] * len(items), counts=counts,
                     **{"count": len(items), **more})


_TOPICS = {Recommendation: RECOMMENDATIONS, KnowledgeRequest: KNOWLEDGE_REQUESTS, KnowledgeUpdate: KNOWLEDGE_UPDATES,
           Judgement: JUDGEMENTS, DeadLetter: DEAD_LETTERS, CatalogueItem: CATALOGUE}
_next = iter(range(10**9))


def record(message: BaseModel, at: float = T0) -> LiveRecord:
    """A message as it lies in its topic."""
    topic = _TOPICS[type(message)]  # type: ignore[index]
    return LiveRecord(topic.name, next(_next), at, str(getattr(message, topic.key)).encode(), encode(message))


def changed(user: str, new: UserState | None, at: float = T0) -> LiveRecord:
    """A state as it lies in the changelog; None = erased."""
    return LiveRecord(CHANGELOG, next(_next), at, user.encode(), None if new is None else dumps(new))
