"""The HTTP interface `/v1`: read what the topics say, by key.

Every answer has an `ETag`, a hash of its body; with `If-None-Match` an answer that has not changed is 304 without one.
Errors are `application/problem+json`. While the topics are being read after the start, answers about users are 503 with
`Retry-After`: half a view would say that a user is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from workers.console.answers import (
    HealthAnswer,
    HistoryEvent,
    ItemAnswer,
    ItemInList,
    KnowledgeAnswer,
    KnowledgeVersion,
    RecommendationsAnswer,
    StateAnswer,
)
from workers.console.openapi import document
from workers.console.pages.paths import path_parts
from workers.console.problems import problem
from workers.views.facts import ShownList, UserFacts
from workers.views.interface import Views

_RETRY_S = 2


def api_routes(views: Views) -> list[BaseRoute]:
    """Return the routes of the interface."""
    async def user(request: Request) -> Response:
        # Not the framework's parameters: an id may hold what is a slash once decoded. A plain slash is taken, too.
        *ids, kind = path_parts(request)[2:]
        user_id = "/".join(ids)
        answer = _USERS.get(kind)
        if answer is None or not user_id:
            return problem(404, "ask for /v1/users/ID/recommendations, …/knowledge or …/state, with the id "
                                "percent-encoded")
        if not views.caught_up:
            return _not_yet(views)
        found = answer(views, user_id)
        return problem(404, f"no {kind} of this user: no event has come, or the id is wrong") if found is None else \
            answered(request, found)

    async def item(request: Request) -> Response:
        item_id = "/".join(path_parts(request)[2:])
        if not item_id:
            return problem(404, "ask for /v1/items/ID, with the id percent-encoded")
        found = await run_in_threadpool(views.item, item_id)
        if not found.known and not views.caught_up:
            return _not_yet(views)
        return answered(request, ItemAnswer.model_validate(found)) if found.known else \
            problem(404, "neither the model version nor an event names this item")

    async def health(request: Request) -> Response:
        ready = views.caught_up
        body = HealthAnswer(status="ok" if ready else "reading", read=round(views.share_read, 4))
        return Response(body.model_dump_json(), 200 if ready else 503,
                        {"Cache-Control": "no-store"}, "application/json")

    text = document()

    async def openapi(request: Request) -> Response:
        return answered(request, text)

    return [
        Route("/v1/users/{rest:any}", user), Route("/v1/items/{rest:any}", item), Route("/v1/health", health),
        Route("/v1/openapi.json", openapi)]


def answered(request: Request, body: BaseModel | bytes) -> Response:
    """Return the answer with its tag, or 304 if the client has it already."""
    data = body if isinstance(body, bytes) else body.model_dump_json().encode()
    tag = f'"{blake2b(data, digest_size=12).hexdigest()}"'
    # no-cache: keep it, but ask each time whether it has changed. A list may change with the next event.
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type="application/json")


def _not_yet(views: Views) -> Response:
    return problem(503, f"the topics are being read since the start, {views.share_read:.0%} so far",
                   {"Retry-After": str(_RETRY_S)})


def _recommendations(views: Views, user_id: str) -> RecommendationsAnswer | None:
    lists = views.lists(user_id)
    return _listed(user_id, lists[0]) if lists else None


def _listed(user_id: str, shown: ShownList) -> RecommendationsAnswer:
    fields = {name: getattr(shown, name) for name in RecommendationsAnswer.model_fields
              if name not in ("user_id", "items", "reference")}
    return RecommendationsAnswer(
        user_id=user_id, items=[ItemInList.model_validate(one) for one in shown.items],
        reference=[ItemInList.model_validate(one) for one in shown.reference], **fields)


def _knowledge(views: Views, user_id: str) -> KnowledgeAnswer | None:
    found = views.refreshes(user_id)
    if not found:
        return None
    made = [one.version for one in found if one.generated_at is not None]
    return KnowledgeAnswer(user_id=user_id, version=max(made, default=0),
                         versions=[KnowledgeVersion.model_validate(one) for one in found])


def _state(views: Views, user_id: str) -> StateAnswer | None:
    found = views.state(user_id)
    return None if found is None else _stated(user_id, found)


def _stated(user_id: str, state: UserFacts) -> StateAnswer:
    fields = {name: getattr(state, name) for name in StateAnswer.model_fields if name not in ("user_id", "history")}
    return StateAnswer(
        user_id=user_id, history=[HistoryEvent.model_validate(one) for one in state.history], **fields)


_USERS: dict[str, Callable[[Views, str], BaseModel | None]] = {
    "recommendations": _recommendations, "knowledge": _knowledge, "state": _state}
