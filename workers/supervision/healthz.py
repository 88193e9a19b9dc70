"""`/healthz`: the stack's health over HTTP, from a thread of the supervisor."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import asdict

import orjson
from aiohttp import web

from schemas.errors import FreshetError
from schemas.settings import Settings
from workers.supervision.health import read

_BIND_S = 10.0


class HealthServer:
    """Answers `GET /healthz` with 200 if the stack is healthy, else 503; the body is JSON with the reasons.

    It reads files only, so it answers also when the supervisor's own loop hangs, and says so. With `health.port` 0 it
    does nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._problem: OSError | None = None
        self._thread = threading.Thread(target=self._serve, name="healthz", daemon=True)

    def __enter__(self) -> HealthServer:
        if self._settings.health.port:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.stop()

    def start(self) -> None:
        """Start to listen on `health.host` and `health.port`.

        Raises:
            FreshetError: the port is taken.
        """
        self._thread.start()
        self._up.wait(_BIND_S)
        if self._problem is not None:
            health = self._settings.health
            raise FreshetError(f"/healthz cannot listen on {health.host}:{health.port} ({self._problem.strerror}); "
                               "choose another port with FRESHET_HEALTH_PORT")

    def stop(self) -> None:
        """Stop to listen."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1024)
        app.router.add_get("/healthz", self._answer)
        runner = web.AppRunner(app, access_log=None)
        try:
            self._loop.run_until_complete(runner.setup())
            site = web.TCPSite(runner, self._settings.health.host, self._settings.health.port)
            self._loop.run_until_complete(site.start())
        except OSError as error:
            self._problem = error
            return
        finally:
            self._up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _answer(self, _: web.Request) -> web.Response:
        health = read(self._settings, time.monotonic())
        body = {"state": "not running", "reasons": []} if health is None else asdict(health)
        good = health is not None and health.state == "ok"
        return web.Response(status=200 if good else 503, body=orjson.dumps(body), content_type="application/json")
