"""The console's application: guard, HTTP interface, pages."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from schemas.settings import Settings
from workers.console.api import api_routes
from workers.console.guard import Gatekeeper, check_console
from workers.console.pages.paths import PathError
from workers.console.pages.routes import routes
from workers.console.problems import problem
from workers.views.interface import Views


def create_app(views: Views, settings: Settings) -> Starlette:
    """Return the application that shows `views`.

    Raises:
        SettingsError: `console.names` holds no names.
    """
    check_console(settings.console)
    return Starlette(
        routes=[*api_routes(views), *routes(views, settings)],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.console.allowed), www_redirect=False),
            Middleware(Gatekeeper, settings=settings.console)],
        exception_handlers={HTTPException: _refused, PathError: _bad_path, 500: _failed})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - that is what it is registered for
    if request.url.path.startswith("/v1/"):
        detail = "there is nothing at this path; /v1/openapi.json lists them" if error.status_code == 404 else \
            error.detail
        return problem(error.status_code, detail, error.headers)
    return PlainTextResponse(error.detail, error.status_code, dict(error.headers or {}))


async def _bad_path(request: Request, error: Exception) -> Response:
    return problem(400, str(error))


async def _failed(request: Request, error: Exception) -> Response:
    return problem(500, "the console has failed at this; its log says why")
