"""Which page answers at which path.

Ids come in the query (`/user?id=…`): producers choose them, and a browser shortens a path that holds `..`.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from schemas.settings import Settings
from workers.console.pages.actions import Actions
from workers.console.pages.comparing import side_by_side
from workers.console.pages.rendering import HERE, address, render
from workers.views.facts import UserPage
from workers.views.interface import Views
from workers.views.summary import Matches

_NEIGHBOURS = 20  # of an item of the list, among which the user's own items are looked for
_HEADERS = {"Cache-Control": "no-store", "X-Frame-Options": "DENY"}


def routes(views: Views, settings: Settings) -> list[BaseRoute]:
    """Return the routes of all pages; `/v1` is the HTTP interface's and taken.

    Args:
        views: what is shown.
        settings: of this process; `console.token` is needed for what changes something, empty = nothing may.
    """
    pages = ConsolePages(views, settings)
    actions = Actions(views, settings, pages.said)
    return [
        Route("/", pages.overview), Route("/live", pages.live), Route("/search", pages.search),
        Route("/user", pages.user), Route("/user/events.csv", pages.events), Route("/item", pages.item),
        Route("/dead-letters", pages.letters), Route("/dead-letters/replay", actions.replay, methods=["POST"]),
        Route("/dead-letters/{number:int}", pages.letter), Route("/models", pages.models),
        Route("/models/rollback", actions.roll_back, methods=["POST"]), Route("/experiments", pages.experiments),
        Route("/settings", pages.settings), Mount("/static", StaticFiles(directory=HERE / "static")),
        Route("/{rest:path}", pages.nothing)]


class ConsolePages:
    """The pages that show something. Views are asked in a thread: they may ask the store."""

    def __init__(self, views: Views, settings: Settings) -> None:
        self._views = views
        self._writable = bool(settings.console.token)

    async def overview(self, request: Request) -> Response:
        """Show the whole at a glance."""
        return await self._overview("overview")

    async def live(self, request: Request) -> Response:
        """Return the part of the overview that is fetched again every 2 s."""
        return await self._overview("live")

    async def _overview(self, template: str) -> Response:
        found = await run_in_threadpool(self._views.overview)
        return self._page(template, "overview", p=found)

    async def search(self, request: Request) -> Response:
        """Go to the only match, or list the matches."""
        query = request.query_params.get("q", "").strip()
        found = await run_in_threadpool(self._views.search, query) if query else Matches()
        if len(found.users) + len(found.items) == 1:
            to = address("/user", found.users[0]) if found.users else address("/item", found.items[0].item_id)
            return RedirectResponse(to, 303, _HEADERS)
        return self._page("found", "", query=query, users=found.users, items=found.items)

    async def user(self, request: Request) -> Response:
        """Show a user."""
        id_ = request.query_params.get("id", "")
        if not id_:
            return RedirectResponse("/search", 303, _HEADERS)
        found, rows = await run_in_threadpool(self._user, id_)
        known = bool(found.state or found.lists or found.refreshes or found.letters)
        return self._page("user", "", 200 if known else 404, p=found, rows=rows, known=known,
                          caught_up=self._views.caught_up)

    def _user(self, id_: str) -> tuple[UserPage, Any]:
        found = self._views.user(id_)
        if not found.lists:
            return found, ()
        near = {}
        if not found.store_problem:  # else each item would wait for the store in vain
            for item in found.lists[0].items:
                near[item.item_id] = [one.item_id for one in self._views.item(item.item_id).by_behaviour[:_NEIGHBOURS]]
        return found, side_by_side(found.lists[0], found.state.history if found.state else (), near)

    async def events(self, request: Request) -> Response:
        """Return a user's events as a file that `freshet replay` takes, oldest first."""
        state = await run_in_threadpool(self._views.state, request.query_params.get("id", ""))
        if state is None:
            return self.said("Replay a user", "No event of this user is held.", "/", 404)
        text = io.StringIO()
        out = csv.writer(text)
        out.writerow(("user_id", "item_id", "timestamp", "event_type"))
        for one in reversed(state.history):
            out.writerow((request.query_params["id"], one.item_id, repr(one.event_time), one.event_type))
        return Response(text.getvalue().encode("utf-8", "surrogatepass"), media_type="text/csv; charset=utf-8",
                        headers={**_HEADERS, "Content-Disposition": 'attachment; filename="events.csv"'})

    async def item(self, request: Request) -> Response:
        """Show an item."""
        id_ = request.query_params.get("id", "")
        if not id_:
            return RedirectResponse("/search", 303, _HEADERS)
        found = await run_in_threadpool(self._views.item, id_)
        return self._page("item", "", 200 if found.known else 404, p=found, caught_up=self._views.caught_up)

    async def letters(self, request: Request) -> Response:
        """Show the dead letters by reason."""
        return self._page("letters", "letters", p=await run_in_threadpool(self._views.dead_letters))

    async def letter(self, request: Request) -> Response:
        """Show one dead letter."""
        found = await run_in_threadpool(self._views.dead_letter, request.path_params["number"])
        if found is None:
            return self.said("Dead letter", "There is no such letter, or it is older than those that are held.",
                             "/dead-letters", 404)
        return self._page("letter", "letters", p=found)

    async def models(self, request: Request) -> Response:
        """Show versions, what pays, adapters and the log of deployments."""
        found = await run_in_threadpool(self._views.models)
        base = found.in_use.partition("+")[0]
        pays = next((row.parts for row in found.rows if row.version == base and not row.base), ())
        return self._page("models", "models", p=found, pays=pays)

    async def experiments(self, request: Request) -> Response:
        """Show the running experiment."""
        return self._page("experiment", "experiments", p=await run_in_threadpool(self._views.experiments))

    async def settings(self, request: Request) -> Response:
        """Show every setting; secrets are masked by the views."""
        return self._page("settings", "settings", p=await run_in_threadpool(self._views.settings))

    async def nothing(self, request: Request) -> Response:
        """Say that there is no such page. Under `/v1` the HTTP interface says it in its own way."""
        if request.url.path.startswith("/v1/"):
            raise HTTPException(404)
        return self.said("No such page", "There is no page at this address.", "/", 404)

    def said(self, title: str, text: str, back: str, status: int = 200, lines: Iterator[str] | tuple[str, ...] = ()
             ) -> Response:
        """Return a page with a message."""
        return self._page("said", "", status, title=title, text=text, lines=lines, back=back, bad=status >= 400)

    def _page(self, template: str, page: str, status: int = 200, **values: Any) -> Response:
        html = render(template, page, writable=self._writable, now=time.time(), **values)
        # A producer's text may hold half a character, which UTF-8 has no bytes for.
        return HTMLResponse(html.encode("utf-8", "replace"), status, _HEADERS)
