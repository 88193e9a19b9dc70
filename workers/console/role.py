"""The role `console`: the views and their server in one process.

Four threads: uvicorn's loop in the main one, the reader of the topics, one that asks the broker now and then, and a
watchdog: a role that stands still ends, and its supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

import uvicorn

from schemas.endings import note_error
from schemas.errors import SettingsError
from schemas.liveness import STALLED_EXIT, Progress
from schemas.settings import Settings
from schemas.watch.instruments import PROGRESS
from workers.console.server import create_app
from workers.kafka.topics import create_topics
from workers.views.reading.following import ViewsThreads

log = logging.getLogger(__name__)
ROLE = "console"
_AGAIN_S = 10.0  # a port that is taken is asked for again this often
_BEAT_S = 0.5


def main(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        FreshetError: the settings are contradictory, or the broker cannot be used.
    """
    if not settings.console.port:
        raise SettingsError("FRESHET_CONSOLE_PORT is 0, which is no console; set it to a port to run one")
    # A request waits at most this long for the thread that folds records, instead of 5 ms each time it needs the
    # interpreter.
    sys.setswitchinterval(0.001)
    served = ConsoleProcess(settings)
    try:
        served.run()
    finally:
        served.end()


class ConsoleProcess:
    """The process's parts, from start to end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._progress = Progress(settings.home, ROLE, self._counters)
        PROGRESS.follow(ROLE, self._progress)
        self._progress.clear()
        create_topics(settings.kafka)
        self._threads = ViewsThreads(settings, self._progress)
        self._server: uvicorn.Server | None = None
        self._url = ""
        self._stopping = False
        self._clean = False
        self._ended = threading.Event()
        self._beat = time.monotonic()

    def _counters(self) -> dict[str, object]:
        threads = getattr(self, "_threads", None)  # the first snapshot comes before them
        return {} if threads is None else {
            "url": self._url, "caught_up": threads.views.caught_up, "unreadable": threads.unreadable}

    def run(self) -> None:
        """Serve until a signal comes.

        Raises:
            Exception: what ended one of the threads.
        """
        app = create_app(self._threads.views, self._settings)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none",
            timeout_keep_alive=30, timeout_graceful_shutdown=3,
            # Beyond it, requests are answered 503 at once: better than all of them late.
            limit_concurrency=500)
        self._server = uvicorn.Server(config)
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn takes the signals while it serves, and raises them again when it is done: then they come here.
            signal.signal(number, self._stop)
        self._threads.start()
        self._beat = time.monotonic()
        threading.Thread(target=self._guard, name="console-watchdog", daemon=True).start()
        asyncio.run(self._serve(self._server))
        if self._threads.failure is not None:
            raise self._threads.failure
        self._clean = True

    def end(self) -> None:
        """Stop the threads."""
        self._ended.set()
        self._threads.stop()
        self._progress.end(self._clean)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True

    async def _serve(self, server: uvicorn.Server) -> None:
        watch = asyncio.create_task(self._watch(server))
        door = self._listen()
        # Ready before the topics are read, also without its port: a start of the stack does not wait for the console.
        # `/v1/health` says how far it is.
        self._progress.ready()
        asked = time.monotonic()
        while door is None and not self._stopping and self._threads.failure is None:
            await asyncio.sleep(_BEAT_S)
            if time.monotonic() - asked > _AGAIN_S:
                door, asked = self._listen(), time.monotonic()
        if door is not None and not self._stopping:
            with door:
                await server.serve(sockets=[door])
        self._stopping = True
        with suppress(asyncio.CancelledError):
            watch.cancel()
            await watch

    def _listen(self) -> socket.socket | None:
        """Return the socket, None if its port is taken: the stack goes on without a console."""
        console = self._settings.console
        try:
            door = listening(console.host, console.port)
        except OSError as error:
            log.error("console: cannot listen on %s:%d (%s); choose another port with FRESHET_CONSOLE_PORT. Trying "
                      "again every %.0f s", console.host, console.port, error.strerror, _AGAIN_S)
            self._progress.waiting("port", None)
            return None
        host = f"[{console.host}]" if ":" in console.host and "[" not in console.host else console.host
        self._url = f"http://{host}:{console.port}"
        self._progress.waiting("", None)
        log.info("console: %s", self._url)
        if not console.loopback and not console.keys:
            log.warning("console: %s can be reached from other machines and asks for no key; set "
                        "FRESHET_CONSOLE_API_KEYS_FILE", self._url)
        return door

    async def _watch(self, server: uvicorn.Server) -> None:
        """End the server when a thread has failed."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            if self._threads.failure is not None:
                server.should_exit = True

    def _guard(self) -> None:
        """End the process when the reader of the topics or the server's loop hangs."""
        while not self._ended.wait(_BEAT_S):
            for what, beat in (("the reader of the topics", self._threads.beat), ("the server", self._beat)):
                silent = time.monotonic() - beat
                if silent > self._settings.watchdog.stall_s:
                    text = f"stalled: {what} has done nothing for {silent:.0f} s"
                    log.critical("console: %s", text)
                    note_error(self._settings.home, ROLE, text)
                    os._exit(STALLED_EXIT)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; IPv6 with or without brackets.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    # With its protocol: asyncio sends small answers at once (TCP_NODELAY) only on sockets that name it. Without, one in
    # fifty waits 40 ms for the client's acknowledgement.
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host.strip("[]"), port))
        door.listen(1024)
        door.setblocking(False)
    except OSError:
        door.close()
        raise
    return door
