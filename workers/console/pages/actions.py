"""What changes something: dead letters sent again, a model rolled back. Each needs the token and leaves audit lines.

The token comes with the form, each time, and is kept nowhere: no cookie that another page's request would carry along.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from schemas.deployments import Deployments
from schemas.errors import FreshetError
from schemas.settings import Settings
from schemas.topics import TOPICS
from workers.measurement.dead_letters import replayable
from workers.operating.announcing import announce_model
from workers.operating.audit import AuditLog
from workers.operating.letters import read_letters, send_again
from workers.views.interface import Views

Form = dict[str, str]
_LARGEST = 16_384  # bytes of a form
_LAST = 100_000  # letters, as the command line reads
_PAUSE_S = 1.0  # after a wrong token: it slows who guesses, and hardly who mistypes


class Actions:
    """The actions.

    Args:
        said: makes the page with the outcome: title, text, where back leads to, status, further lines.
    """

    def __init__(self, views: Views, settings: Settings, said: Callable[..., Response]) -> None:
        self._views = views
        self._settings = settings
        self._said = said
        self._audit = AuditLog(settings.home)

    async def replay(self, request: Request) -> Response:
        """Send dead letters again: one by its number, or all whose reason contains a text."""
        return await self._act(request, "replay", "Send again", "/dead-letters", self._replay)

    async def roll_back(self, request: Request) -> Response:
        """Go back to what was in use before."""
        return await self._act(request, "rollback", "Roll back", "/models", self._roll_back)

    async def _act(self, request: Request, action: str, title: str, back: str,
                   do: Callable[[Form, str], tuple[str, tuple[str, ...]]]) -> Response:
        by = request.client.host if request.client else "unknown"
        form = await _form(request)
        token = form.pop("token", "")
        about = {name: form[name] for name in ("number", "reason", "version") if form.get(name)}
        if not self._settings.console.token:
            return self._said(title, "This console is read-only: no token is set (FRESHET_CONSOLE_TOKEN).", back, 403)
        if not hmac.compare_digest(token.encode(), self._settings.console.token.encode()):
            self._audit.add(action, "refused", by, why="wrong token", **about)
            await asyncio.sleep(_PAUSE_S)
            return self._said(title, "The token is wrong. Nothing was changed.", back, 403)
        self._audit.add(action, "begun", by, **about)
        try:
            text, lines = await run_in_threadpool(do, form, by)
        except FreshetError as error:
            self._audit.add(action, "failed", by, why=str(error), **about)
            return self._said(title, f"It failed: {error}", back, 409)
        self._audit.add(action, "done", by, text=text, **about)
        return self._said(title, text, back, 200, lines)

    def _replay(self, form: Form, by: str) -> tuple[str, tuple[str, ...]]:
        kafka = self._settings.kafka
        found = read_letters(kafka, _LAST)
        if number := form.get("number", ""):
            letter = self._views.dead_letter(int(number)) if number.isdecimal() and len(number) < 20 else None
            if letter is None:
                raise FreshetError("there is no such letter, or it is older than those that are held")
            place = letter.topic, letter.partition, letter.offset
            found = [one for one in found if (one.topic, one.partition, one.offset) == place][-1:]
        elif reason := form.get("reason", "").strip().lower():
            found = [one for one in found if reason in one.reason.lower()]
        if not found:
            raise FreshetError("there is no dead letter like that")
        good, bad = replayable(found, map(kafka.full, TOPICS))
        sent = send_again(kafka, good)
        said = "1 record was sent to its topic again." if sent == 1 else (
            f"{sent:,} records were sent to their topics again.")
        return said, tuple(
            f"{count:,} were not: {why}." for why, count in bad.items())

    def _roll_back(self, form: Form, by: str) -> tuple[str, tuple[str, ...]]:
        deployments = Deployments(self._settings.home)
        before = deployments.in_use().model_version
        if form.get("version") != before:
            raise FreshetError(f"{before} came into use since this page was made; look at it and try again")
        update = deployments.roll_back(time.time(), form.get("reason", ""), f"console, {by}")
        notice = announce_model(self._settings, update)
        return f"Rolled back {before}. In use: {update.model_version}; {notice}.", ()


async def _form(request: Request) -> Form:
    """Return the fields of a form, the last of each name; of a body that is too large none."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST:
            return {}
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}
