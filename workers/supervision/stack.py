"""Starts, watches and stops the processes of a stack: the embedded broker and store, and the roles.

No thread: the owner of a `Stack` calls `check()` now and then, which starts again what has ended. When and how often
decides `RestartPolicy`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException

from schemas.endings import SETUP_EXIT, WAITING_EXIT, one_line, read_error
from schemas.errors import BrokerUnavailableError, FreshetError, StalledError
from schemas.liveness import STALLED_EXIT, ready_file
from schemas.settings import Settings, to_environ
from workers.home.crashes import Crash, CrashLog
from workers.home.lock import STATES, clear, lock, run_folder
from workers.home.stack_info import Running, announce, withdraw
from workers.home.store_key import new_key
from workers.kafka.configuration import check_reachable
from workers.kafka.topics import create_topics
from workers.supervision.broker import HOST, Broker, free_port
from workers.supervision.child import Child, stop_all
from workers.supervision.logs import mark, rotate
from workers.supervision.restarts import RestartPolicy
from workers.supervision.supervised import Supervised, said

DEFAULT_ROLES = ("streams", "knowledge", "ranking", "guard")
# Alignment is started where it is asked for: it competes for the cores of these. The console shows what they do:
# `freshet up` adds it, the demo has a screen of its own.
ROLES = (*DEFAULT_ROLES, "alignment", "console")
STOP_S = 10.0
_ANNOUNCE_S = 1.0  # `up.json` is written this often: an older one says that the supervisor hangs
# The broker is asked with this patience. A broker that is up answers in milliseconds, also over TLS; signals wait
# as long, because the client asks in C.
_PROBE_S = 3.0


def role_environ(settings: Settings, role: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a role's process: the parent's, with every setting as the parent has it.

    Thread counts: streams, store, guard and console do no linear algebra worth a second thread and would only take the
    cores of those that do.
    """
    out = {key: value for key, value in environ.items() if not key.startswith("FRESHET_") or value}
    out |= to_environ(settings) | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if role in ("streams", "store", "guard", "console"):
        out |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    elif role in ("knowledge", "ranking", "alignment") and "OMP_NUM_THREADS" not in out:
        # Knowledge and ranking work at the same time: each gets half of the cores. Alignment works at low priority.
        out["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
    return out


def check_store(settings: Settings, roles: Sequence[str]) -> None:
    """Refuse to start a store of its own for a role whose partner, which needs the same one, runs elsewhere.

    Raises:
        FreshetError: of knowledge and ranking only one is to run, on a real broker, and no store is set.
    """
    apart = {"knowledge", "ranking"} & set(roles)
    if len(apart) == 1 and settings.kafka.bootstrap and not settings.qdrant.url:
        here, = apart
        there = "ranking" if here == "knowledge" else "knowledge"
        raise FreshetError(
            f"{here} runs without {there} and no store is set: it would start one of its own, which {there} elsewhere "
            "never sees. Set FRESHET_QDRANT_URL=http://host:6333 to the Qdrant server that both use, or run "
            "--roles knowledge,ranking in one process")


class Stack:
    """The processes of one `freshet up` or `freshet demo`.

    Args:
        settings: where `kafka.bootstrap` (or `qdrant.url`) is empty, an embedded broker (or store) is started.
        roles: to run, of `ROLES`.
        command: the command that started it; other commands show it.
        fresh: start from no user states and no knowledge, also where the broker is not embedded.
        patient: wait for a broker that is away, and start a role again that fails while starting. Without it, a start
            that does not work at once is an error.
        say: gets a line per event that a user should know of.

    With the embedded broker a stack starts from nothing: that broker keeps records in memory only, and user states or
    knowledge versions from before would contradict the new records.
    """

    def __init__(
        self, settings: Settings, roles: Sequence[str] = DEFAULT_ROLES, *, command: str = "up",
        fresh: bool = False, patient: bool = False, say: Callable[[str], None] = print,
    ) -> None:
        unknown = sorted(set(roles) - set(ROLES))
        if unknown or not roles:
            raise FreshetError(f"unknown role {', '.join(unknown) or '(none)'}; roles are {', '.join(ROLES)}")
        check_store(settings, roles)
        self.settings = replace(settings, home=settings.home.absolute())
        self.roles = tuple(role for role in ROLES if role in roles)
        self.command = command
        self.fresh = fresh
        self.patient = patient
        self.say = say
        self.children: dict[str, Child] = {}
        self.records: dict[str, Supervised] = {}
        self._policy = RestartPolicy(settings.watchdog.failures, settled_s=3 * settings.watchdog.stall_s)
        self._crashes = CrashLog(self.settings.home)
        self._embedded = not settings.kafka.bootstrap
        self._locks = ExitStack()
        self._held = False
        self._started_at = time.time()
        self._ready = False
        self._waits_for = ""
        self._announced = -_ANNOUNCE_S
        self._unwritten = False

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

    @property
    def restarts(self) -> int:
        """How often a role was started again."""
        return sum(record.restarts for record in self.records.values())

    def start(self) -> None:
        """Start everything and return when every role is ready.

        Raises:
            FreshetError: the home is in use, a port is taken, or a role ended and will not do better; the text has
                its last error. Without `patient` also: the broker is away.
            StalledError: without `patient`: a role was not ready within `watchdog.start_s`.
        """
        home = self.settings.home
        self.hold()
        if self._embedded or self.fresh:
            for state in STATES:
                clear(home, state)
        if self._embedded:
            self._start_broker()
        self._create_topics()
        store = self._has_store()
        if store:
            self.settings = replace(
                self.settings, qdrant=replace(
                    self.settings.qdrant, url=f"http://{HOST}:{free_port()}", api_key=new_key()))
            self._start_role("store")
        if "streams" in self.roles:
            self._start_role("streams")  # does not need the store: the two get ready at the same time
        if store:
            self._await_ready(["store"])
        for role in self.roles:
            if role not in self.children:
                self._start_role(role)
        self._await_ready(self.roles)
        self._ready = True
        self._announce(now=True)

    def hold(self) -> None:
        """Hold the home, or the roles' parts of it, until `stop`; `start` does it where it was not done before.

        Raises:
            FreshetError: another process holds one of the parts.
        """
        if self._held:
            return
        # A stack that starts from nothing deletes what a service of any role on this home relies on.
        whole = self.fresh or self._embedded
        with ExitStack() as taken:
            for name in (*ROLES, "store") if whole else (*self.roles, *(["store"] if self._has_store() else [])):
                taken.enter_context(lock(self.settings.home, name))
            self._locks = taken.pop_all()
        self._held = True

    def _has_store(self) -> bool:
        return not self.settings.qdrant.url and bool({"knowledge", "ranking"} & set(self.roles))

    def check(self) -> None:
        """Start again what has ended, with back-off. Call it at least every second.

        Raises:
            FreshetError: the embedded broker ended, or a role failed too often in a row; the text has its last error.
        """
        now = time.monotonic()
        for name in list(self.children):
            if name == "broker":
                self.check_broker()
            elif (due := self.records[name].due) is not None:
                if now >= due:
                    self._start_again(name)
            elif (code := self.children[name].exit_code()) is not None:
                self._ended(name, code)
            else:
                self._watch(name, now)
        self._announce()

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
            self._held = False

    def check_broker(self) -> None:
        """Raise FreshetError if the embedded broker has ended."""
        child = self.children["broker"]
        if child.exit_code() is not None:
            raise FreshetError(f"the embedded broker ended and its records with it: "
                               f"{said(child.exit_code() or 0, None, child)}{_where(child)}")

    def _log(self, name: str) -> Path | None:
        """Return the file that a process's output goes to, None = this process's standard error."""
        return run_folder(self.settings.home) / f"{name}.log" if self.settings.log.to == "file" else None

    def _rotate_logs(self) -> None:
        for child in self.children.values():
            if child.log is not None:
                rotate(child.log, int(self.settings.log.megabytes * 1e6), self.settings.log.kept)

    def _start_broker(self) -> None:
        broker = Broker(self.settings.kafka.port, self._log("broker"))
        self.children["broker"] = broker.start()
        self.settings = replace(self.settings, kafka=replace(self.settings.kafka, bootstrap=broker.bootstrap))

    def _create_topics(self) -> None:
        """Create the topics; wait for the broker as long as that takes, if this stack is patient."""
        tries = 0
        while True:
            try:
                if self.patient:
                    check_reachable(self.settings.kafka, _PROBE_S)
                create_topics(self.settings.kafka)
                break
            except (BrokerUnavailableError, KafkaException) as error:
                if not self.patient:
                    raise
                if not tries:
                    self.say(f"waiting for the broker: {one_line(str(error))}")
            self._waits_for = "broker"
            tries += 1
            deadline = time.monotonic() + self._policy.wait(tries)
            while time.monotonic() < deadline:
                self._announce()
                time.sleep(0.2)
        if tries:
            self.say("the broker answers")
        self._waits_for = ""

    def _start_role(self, name: str) -> None:
        ready_file(self.settings.home, name).unlink(missing_ok=True)
        child = Child(name, [sys.executable, "-m", "workers.cli", "role", name],
                      self._log(name), role_environ(self.settings, name, os.environ))
        mark(child.log, name)
        child.start()
        self.children[name] = child
        self.records.setdefault(name, Supervised()).begin(time.monotonic())

    def _start_again(self, name: str) -> None:
        record = self.records[name]
        if record.waits_for == "broker" and (away := self._broker_away()):
            record.keep_waiting(time.monotonic(), self._policy, away)
            return
        if record.waits_for:
            self.say(f"starting {name} again: it waited for the {record.waits_for}")
        self.children[name].kill()  # what it left of its process group
        record.restarts += 1
        self._start_role(name)

    def _await_ready(self, names: Sequence[str]) -> None:
        while any(self.records[name].ready is None for name in names):
            self.check()
            time.sleep(0.05)

    def _watch(self, name: str, now: float) -> None:
        """Note that a running role is ready, or end it if it is not in time."""
        record = self.records[name]
        if record.ready is not None:
            if not record.settled and now - record.ready >= self._policy.settled_s:
                record.settled = True
                self._crashes.settled([name])
        elif ready_file(self.settings.home, name).exists():
            record.ready, record.waits_for = now, ""
            self._announce(now=True)
        elif now - record.started > self.settings.watchdog.start_s:
            if away := self._broker_away():  # no role can be ready: its time begins when the broker is back
                record.waits_for, record.error, record.started = "broker", away, time.monotonic()
                return
            late = f"was not ready within {self.settings.watchdog.start_s:g} s (FRESHET_WATCHDOG_START_S)"
            if not self.patient and not self._ready:
                raise StalledError(self._last_words(name, late))
            self.children[name].kill()
            self._ended(name, STALLED_EXIT, late)

    def _ended(self, name: str, code: int, error: str = "") -> None:
        record, child, now = self.records[name], self.children[name], time.monotonic()
        noted = read_error(self.settings.home, name, child.pid)
        waits_for, text = noted.waits_for if noted and code == WAITING_EXIT else "", error or said(code, noted, child)
        if not waits_for and (away := self._broker_away()):
            waits_for, text = "broker", away
        decision = record.end(now, self._policy, waits_for, text)
        ready_file(self.settings.home, name).unlink(missing_ok=True)
        if not waits_for:
            self._crashes.add(Crash(role=name, at=time.time(), code=code, reason=text))
        if waits_for:
            self.say(f"{name} waits for the {waits_for}: {text}")
        elif not self._ready and (code == SETUP_EXIT or not self.patient):
            raise FreshetError(self._last_words(name, f"ended while starting: {text}"))
        elif decision.what == "give up":
            raise FreshetError(self._last_words(name, f"failed {decision.failures} times in a row, the last: {text}"))
        else:
            self.say(f"{name} failed: {text}. Starting it again in {decision.after_s:g} s (failure "
                     f"{max(1, decision.failures)} of {self._policy.limit} in a row{_where(child)})")
        self._announce(now=True)

    def _last_words(self, name: str, what: str) -> str:
        return f"{name} {what}{_where(self.children[name])}"

    def _broker_away(self) -> str:
        """Return why the broker is away, "" if it answers. The embedded one is checked by its process."""
        if self._embedded:
            return ""
        try:
            check_reachable(self.settings.kafka, _PROBE_S)
        except BrokerUnavailableError as error:
            return str(error)
        return ""

    def _announce(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._announced < _ANNOUNCE_S:
            return
        self._announced = time.monotonic()
        self._rotate_logs()
        try:
            announce(self.settings.home, Running(
                pid=os.getpid(), started_at=self._started_at, bootstrap=self.settings.kafka.bootstrap,
                qdrant_url=self.settings.qdrant.url, prefix=self.settings.kafka.prefix, roles=list(self.roles),
                command=self.command,
                pids={name: child.pid or 0 for name, child in self.children.items()}, ready=self._ready,
                beat=self._announced, waits_for=self._waits_for,
                processes={name: record.report(self._policy) for name, record in self.records.items()}))
        except OSError as error:  # a full disk ends the roles, each with its own error; this process reports them
            if not self._unwritten:
                self.say(f"{self.settings.home} cannot be written: {error.strerror}")
            self._unwritten = True
        else:
            self._unwritten = False


def _where(child: Child) -> str:
    return f"; log: {child.log}" if child.log else ""
