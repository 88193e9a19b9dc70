"""A small HTTP server in a thread of its own: it answers while the rest of the process is busy."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from schemas.errors import FreshetError

log = logging.getLogger(__name__)
_BIND_S = 10.0
_AGAIN_S = 10.0  # a port that is taken is asked for again this often


@dataclass(frozen=True, slots=True)
class Reply:
    """What a path answers."""

    body: bytes
    content_type: str = "application/json"
    good: bool = True
    """False = status 503 instead of 200."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where to listen.

    Args:
        setting: the variable that sets the port, for the error text.
    """

    host: str
    port: int
    setting: str


class Endpoints:
    """Answers GET requests from functions, which are called in this server's thread.

    Args:
        answers: path → function.
        doors: where to listen; none = do nothing.
        required: a port that is taken is an error. If not, it is logged and tried again: a role must not end because
            nobody can watch it.
    """

    def __init__(
        self, answers: Mapping[str, Callable[[], Reply]], doors: Sequence[Door], *, required: bool,
    ) -> None:
        self._answers = answers
        self._doors = doors
        self._required = required
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._problem: FreshetError | None = None
        self._thread = threading.Thread(target=self._serve, name="endpoints", daemon=True)

    def __enter__(self) -> Endpoints:
        if self._doors:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.stop()

    def start(self) -> None:
        """Start to listen.

        Raises:
            FreshetError: a port is taken, and it is required.
        """
        self._thread.start()
        self._up.wait(_BIND_S)
        if self._problem is not None:
            raise self._problem

    def stop(self) -> None:
        """Stop to listen."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1024)
        for path, function in self._answers.items():
            app.router.add_get(path, _handler(function))
        runner = web.AppRunner(app, access_log=None)
        self._loop.run_until_complete(runner.setup())
        waiting = [door for door in self._doors if not self._listen(runner, door)]
        if self._problem is None and waiting:
            self._tasks = [self._loop.create_task(self._listen_later(runner, door)) for door in waiting]
        self._up.set()
        if self._problem is None:
            self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    def _listen(self, runner: web.AppRunner, door: Door) -> bool:
        try:
            self._loop.run_until_complete(web.TCPSite(runner, door.host, door.port).start())
        except OSError as error:
            text = (f"cannot listen on {door.host}:{door.port} for {', '.join(self._answers)} ({error.strerror}); "
                    f"choose another port with {door.setting}")
            if self._required:
                self._problem = FreshetError(text)
            else:
                log.error("%s. Trying again every %.0f s", text, _AGAIN_S)
            return False
        return True

    async def _listen_later(self, runner: web.AppRunner, door: Door) -> None:
        while True:
            await asyncio.sleep(_AGAIN_S)
            try:
                await web.TCPSite(runner, door.host, door.port).start()
            except OSError:
                continue
            log.warning("listening on %s:%d", door.host, door.port)
            return


def _handler(function: Callable[[], Reply]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.Response:
        try:
            found = function()
        except Exception:  # a fault in what is shown must not end the server, and is not the caller's
            log.exception("cannot answer")
            return web.Response(status=500)
        return web.Response(status=200 if found.good else 503, body=found.body,
                            headers={"Content-Type": found.content_type})

    return answer
