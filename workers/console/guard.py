"""Who may see and who may change: API keys, the operator's token, requests that another site's page makes.

A key comes as `Authorization: Bearer KEY`, as `X-Api-Key`, or as the password of HTTP Basic, which browsers ask for by
themselves; the user's name does not matter. The token opens what a key opens. Keys are compared in constant time, all
of them, so that the time says neither which one nor how much of it was right.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.errors import SettingsError
from schemas.settings import ConsoleSettings
from schemas.watch.instruments import histogram
from workers.console.problems import problem

# What says nothing of a user or an item, for probes and for those who write clients.
OPEN = frozenset({"/v1/health", "/v1/openapi.json"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = (
    # Pages need no inline script; what a producer puts into an id or a title therefore runs nowhere.
    (b"content-security-policy",
     b"default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def given_secret(headers: Headers) -> str:
    """Return the key or token that a request brings, "" = none."""
    if key := headers.get("x-api-key"):
        return key
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def is_one_of(given: str, secrets: tuple[str, ...]) -> bool:
    """Return whether `given` is one of these secrets, in a time that tells nothing of them but their number."""
    data = given.encode("utf-8", "surrogatepass")
    right = 0
    for one in secrets:  # every one of them, also after the right one
        right += bool(one) and hmac.compare_digest(data, one.encode("utf-8", "surrogatepass"))
    return bool(right)


def may_act(headers: Headers, settings: ConsoleSettings) -> bool:
    """Return whether a request brings the operator's token. Without a token set, nobody may."""
    return is_one_of(given_secret(headers), (settings.token,))


def check_console(settings: ConsoleSettings) -> None:
    """Check what only this process uses.

    Raises:
        SettingsError: a name with a wildcard elsewhere than before its first dot.
    """
    for name in settings.allowed:
        if name != "*" and ("*" in name[1:] or (name.startswith("*") and not name.startswith("*."))):
            raise SettingsError(
                f"FRESHET_CONSOLE_NAMES: {name} is no name; write console.example.org, *.example.org or *")


class Gatekeeper:
    """Middleware: refuses what may not come in, and adds the headers that keep browsers careful."""

    def __init__(self, app: ASGIApp, settings: ConsoleSettings) -> None:
        self._app = app
        self._seconds = histogram("freshet_console_request_seconds")
        self._secrets = (*settings.keys, settings.token) if settings.keys else ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started, status = time.perf_counter(), 500

        async def careful(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                held = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in _HEADERS if pair[0] not in held)]
            await send(message)

        headers = Headers(scope=scope)
        try:
            if scope["method"] not in _SAFE and _from_elsewhere(headers):
                await problem(403, "a page of another site may change nothing here")(scope, receive, careful)
            elif self._secrets and scope["path"] not in OPEN and not is_one_of(given_secret(headers), self._secrets):
                answer = problem(401, "this needs a key: Authorization: Bearer KEY", {
                    "WWW-Authenticate": 'Basic realm="freshet", charset="UTF-8"', "Cache-Control": "no-store"})
                await answer(scope, receive, careful)
            else:
                await self._app(scope, receive, careful)
        finally:
            self._seconds.labels(_part(scope["path"]), f"{status // 100}xx").observe(time.perf_counter() - started)


def _part(path: str) -> str:
    """Return which part of the server a path belongs to: a label of few values, whatever is asked for."""
    _, root, *rest = path.split("/", 3)
    part = rest[0].removesuffix(".json") if root == "v1" and rest else "pages"
    return part if part in ("users", "items", "health", "openapi") else "pages"


def _from_elsewhere(headers: Headers) -> bool:
    """Return whether a browser made the request for another site's page. Programs send neither header."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", "")
