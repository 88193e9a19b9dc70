"""Which page answers at which path."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from schemas.settings import Settings
from workers.views.interface import Views


def routes(views: Views, settings: Settings) -> list[BaseRoute]:
    """Return the routes of all pages; `/v1` is the HTTP interface's and taken.

    Args:
        views: what is shown.
        settings: of this process; `console.token` is needed for what changes something, empty = nothing may.
    """
    async def start(request: Request) -> Response:
        return RedirectResponse("/v1/openapi.json")

    return [Route("/", start)]
