"""Starts, watches and stops the processes of a stack: the embedded broker and store, and the roles.

No thread: the owner of a `Stack` calls `check()` now and then, which restarts what has crashed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType

from schemas.errors import FreshetError, StalledError
from schemas.liveness import ready_file
from schemas.settings import Settings, to_environ
from workers.home.lock import lock, run_folder
from workers.home.stack_info import Running, announce, withdraw
from workers.kafka.topics import create_topics
from workers.supervision.broker import HOST, Broker, free_port
from workers.supervision.child import Child, stop_all

DEFAULT_ROLES = ("streams", "knowledge", "ranking", "guard")
# The others are started where they are asked for: they compete for the cores of these.
ROLES = (*DEFAULT_ROLES, "alignment")
# Restarts of one role within a minute; beyond that, another restart will not help.
MAX_RESTARTS = 5
STOP_S = 10.0


@dataclass
class Restarts:
    """When a role was restarted, and when it may be next. Times are monotonic seconds, passed in."""

    times: deque[float] = field(default_factory=deque)
    total: int = 0

    def allow(self, now: float) -> bool:
        """Return whether another restart is within `MAX_RESTARTS` per minute."""
        while self.times and now - self.times[0] > 60.0:
            self.times.popleft()
        return len(self.times) < MAX_RESTARTS

    def note(self, now: float) -> None:
        """Count a restart."""
        self.times.append(now)
        self.total += 1

    def backoff(self) -> float:
        """Return how long to wait before the next: 0.5 s, doubled per recent restart, at most 8 s."""
        return min(8.0, 0.5 * 2 ** len(self.times))


def role_environ(settings: Settings, role: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a role's process: the parent's, with every setting as the parent has it.

    Thread counts: streams, store and guard do no linear algebra worth a second thread and would only take the cores of
    those that do.
    """
    out = {key: value for key, value in environ.items() if not key.startswith("FRESHET_") or value}
    out |= to_environ(settings) | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if role in ("streams", "store", "guard"):
        out |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    elif role in ("knowledge", "ranking", "alignment") and "OMP_NUM_THREADS" not in out:
        # Knowledge and ranking work at the same time: each gets half of the cores. Alignment works at low priority.
        out["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
    return out


class Stack:
    """The processes of one `freshet up` or `freshet demo`.

    Args:
        settings: where `kafka.bootstrap` (or `qdrant.url`) is empty, an embedded broker (or store) is started.
        roles: to run, of `ROLES`.
        command: the command that started it; other commands show it.
        fresh: start from no user states and no knowledge, also where the broker is not embedded.
        say: gets a line per event that a user should know of.

    With the embedded broker a stack starts from nothing: that broker keeps records in memory only, and user states or
    knowledge versions from before would contradict the new records.
    """

    def __init__(
        self, settings: Settings, roles: Sequence[str] = DEFAULT_ROLES, *, command: str = "up",
        fresh: bool = False, say: Callable[[str], None] = print,
    ) -> None:
        unknown = sorted(set(roles) - set(ROLES))
        if unknown or not roles:
            raise FreshetError(f"unknown role {', '.join(unknown) or '(none)'}; roles are {', '.join(ROLES)}")
        self.settings = replace(settings, home=settings.home.absolute())
        self.roles = tuple(role for role in ROLES if role in roles)
        self.command = command
        self.fresh = fresh
        self.say = say
        self.children: dict[str, Child] = {}
        self.restarts: dict[str, Restarts] = {}
        self._due: dict[str, float] = {}
        self._locks = ExitStack()
        self._started_at = time.time()

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and return when every role is ready.

        Raises:
            FreshetError: the home is in use, a port is taken, or a role ended; its log's end is in the text.
            StalledError: a role was not ready within `watchdog.start_s`.
        """
        home = self.settings.home
        embedded = not self.settings.kafka.bootstrap
        for name in ("up",) if embedded or self.fresh else self.roles:
            self._locks.enter_context(lock(home, name))
        for name in ("broker", "store", *self.roles):
            (run_folder(home) / f"{name}.log").unlink(missing_ok=True)
        if embedded or self.fresh:
            for name in ("streams", "store", "guard"):
                shutil.rmtree(home / name, ignore_errors=True)
        if embedded:
            self._start_broker()
        create_topics(self.settings.kafka)
        store = not self.settings.qdrant.url and bool({"knowledge", "ranking"} & set(self.roles))
        if store:
            self.settings = replace(
                self.settings, qdrant=replace(self.settings.qdrant, url=f"http://{HOST}:{free_port()}"))
            self._start_role("store")
        if "streams" in self.roles:
            self._start_role("streams")  # does not need the store: the two get ready at the same time
        if store:
            self._await_ready(["store"])
        for role in self.roles:
            if role not in self.children:
                self._start_role(role)
        self._announce(ready=False)
        self._await_ready(self.roles)
        self._announce(ready=True)

    def check(self) -> None:
        """Restart what has crashed, with backoff. Call it at least every second.

        Raises:
            FreshetError: the embedded broker ended, or a role crashed more than `MAX_RESTARTS` times in a minute.
        """
        now = time.monotonic()
        for name, child in self.children.items():
            code = child.exit_code()
            if code is None:
                continue
            if name == "broker":
                raise FreshetError(
                    f"the embedded broker ended (exit code {code}) and its records with it; {child.log} ends with:\n"
                    + child.tail())
            restarts = self.restarts.setdefault(name, Restarts())
            if name not in self._due:
                if not restarts.allow(now):
                    raise FreshetError(
                        f"{name} crashed {MAX_RESTARTS} times within a minute (exit code {code}); "
                        f"{child.log} ends with:\n{child.tail()}")
                self._due[name] = now + restarts.backoff()
                self.say(f"{name} ended with exit code {code}: restarting (log: {child.log})")
            elif now >= self._due[name]:
                del self._due[name]
                restarts.note(now)
                child.kill()
                self._start_role(name)
                self._announce(ready=True)

    def stop(self) -> None:
        """Stop everything: roles first, then the store, then the broker, each with time to finish its batch."""
        withdraw(self.settings.home)
        deadline = time.monotonic() + STOP_S
        groups = [[name for name in self.children if name in ROLES], ["store"], ["broker"]]
        try:
            for names in groups:
                stop_all([self.children[name] for name in names if name in self.children],
                         max(1.0, deadline - time.monotonic()))
        finally:
            for child in self.children.values():
                child.kill()
            self.children.clear()
            self._locks.close()

    def _start_broker(self) -> None:
        broker = Broker(self.settings.kafka.port, run_folder(self.settings.home) / "broker.log")
        self.children["broker"] = broker.start()
        self.settings = replace(self.settings, kafka=replace(self.settings.kafka, bootstrap=broker.bootstrap))

    def _start_role(self, name: str) -> None:
        ready_file(self.settings.home, name).unlink(missing_ok=True)
        child = Child(name, [sys.executable, "-m", "workers.cli", "role", name],
                      run_folder(self.settings.home) / f"{name}.log", role_environ(self.settings, name, os.environ))
        child.start()
        self.children[name] = child

    def _await_ready(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + self.settings.watchdog.start_s
        waiting = list(names)
        while waiting:
            for name in list(waiting):
                child = self.children[name]
                if child.exit_code() is not None:
                    raise FreshetError(f"{name} ended while starting (exit code {child.exit_code()}); "
                                       f"{child.log} ends with:\n{child.tail()}")
                if ready_file(self.settings.home, name).exists():
                    waiting.remove(name)
            if waiting and time.monotonic() > deadline:
                child = self.children[waiting[0]]
                raise StalledError(
                    f"{waiting[0]} was not ready within {self.settings.watchdog.start_s:.0f} s "
                    f"(FRESHET_WATCHDOG_START_S); {child.log} ends with:\n{child.tail()}")
            if "broker" in self.children:
                self.check_broker()
            time.sleep(0.05)

    def check_broker(self) -> None:
        """Raise FreshetError if the embedded broker has ended."""
        child = self.children["broker"]
        if child.exit_code() is not None:
            raise FreshetError(f"the embedded broker ended (exit code {child.exit_code()}); {child.log} ends with:\n"
                               + child.tail())

    def _announce(self, *, ready: bool) -> None:
        announce(self.settings.home, Running(
            pid=os.getpid(), started_at=self._started_at, bootstrap=self.settings.kafka.bootstrap,
            qdrant_url=self.settings.qdrant.url, roles=list(self.roles), command=self.command,
            pids={name: child.pid or 0 for name, child in self.children.items()}, ready=ready))
