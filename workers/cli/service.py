"""`freshet up`, `freshet health`, and the hidden `freshet role`, which runs one process of a stack."""

from __future__ import annotations

import errno
import logging
import signal
import time
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated
from urllib.parse import urlsplit

import typer

from schemas.artifacts import Registry
from schemas.errors import (
    ArtifactError,
    BrokerUnavailableError,
    FreshetError,
    SettingsError,
    StoreUnavailableError,
)
from schemas.liveness import SETUP_EXIT, WAITING_EXIT, note_error
from schemas.settings import load
from workers.home import stack_info

log = logging.getLogger(__name__)
# No space, quota used up, file as large as this process may write (`ulimit -f`).
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# Role → module whose `main(settings)` runs it until SIGTERM.
ROLE_MODULES = {
    "store": "workers.store.embedded.server",
    "streams": "streams.service.app",
    "knowledge": "workers.roles.knowledge.worker",
    "ranking": "workers.roles.ranking.worker",
    "alignment": "workers.roles.alignment.worker",
    "guard": "workers.roles.guard",
}


def up(
    roles: Annotated[str, typer.Option(
        help="Roles to run, comma-separated: streams, knowledge, ranking, guard, alignment. "
             "[default: all but alignment]")] = "",
    port: Annotated[int | None, typer.Option(help="Port of the embedded broker. 0 = any free port.")] = None,
) -> None:
    """Run Freshet as a service with the current model, until Ctrl-C.

    Fit a model first with `freshet fit`. If no broker address is set, a broker and a vector store are started as well.
    Other `freshet` commands with the same FRESHET_HOME find them automatically.

    Examples:

    `freshet up --port 9092`, then in another terminal `freshet tail recommendations`

    `FRESHET_KAFKA_BOOTSTRAP=kafka:9092 FRESHET_QDRANT_URL=http://qdrant:6333 freshet up --roles knowledge`
    """
    from workers.supervision.stack import DEFAULT_ROLES, Stack

    settings = load()
    if port is not None:
        settings = replace(settings, kafka=replace(settings.kafka, port=port))
    names = [name.strip() for name in roles.split(",") if name.strip()] or list(DEFAULT_ROLES)
    version = Registry(settings.home.absolute()).current()
    asked_to_stop: list[int] = []

    def _stop(number: int, _: FrameType | None) -> None:
        asked_to_stop.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, _stop)
    typer.echo(f"starting {', '.join(names)} with model {version}")
    try:
        with Stack(settings, names, patient=True, say=typer.echo) as stack:
            typer.echo(f"broker: {stack.settings.kafka.bootstrap}")
            if stack.settings.qdrant.url:
                typer.echo(f"store: {stack.settings.qdrant.url}")
            typer.echo(f"logs: {stack_info.run_folder(stack.settings.home)}")
            typer.echo("ready")
            while True:
                stack.check()
                time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("stopped")
        if signal.SIGTERM not in asked_to_stop:  # SIGTERM from a service manager is a normal end
            raise typer.Exit(130) from None


def role(name: Annotated[str, typer.Argument(help=f"One of {', '.join(ROLE_MODULES)}.")]) -> None:
    """Run one role in this process. `freshet up` starts the roles this way. Example: `freshet role ranking`."""
    if name not in ROLE_MODULES:
        raise FreshetError(f"unknown role {name!r}; roles are {', '.join(ROLE_MODULES)}")
    settings = load()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request to the store
    try:
        module = import_module(ROLE_MODULES[name])
        if name == "store":
            # The process that starts the stack chooses the port, so the other roles find the store again after a
            # restart.
            module.main(settings, port=urlsplit(settings.qdrant.url).port or 0)
        else:
            module.main(settings)
    except Exception as error:
        end = ending(error, settings.home)
        note_error(settings.home, name, end.text, end.waits_for)
        if end.unexpected:
            log.exception("%s ends", name)
        typer.secho(f"freshet: {end.text}", fg=typer.colors.RED, err=True)
        raise typer.Exit(end.code) from None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a role ends after an error.

    Args:
        text: one line.
        waits_for: "broker" or "store" if that is away.
        unexpected: whether the traceback is worth logging.
    """

    code: int
    text: str
    waits_for: str = ""
    unexpected: bool = False


def ending(error: Exception, home: Path) -> Ending:
    """Return the exit code and the line for an error that left a role."""
    text = str(error)
    match error:
        case BrokerUnavailableError():
            return Ending(WAITING_EXIT, text, "broker")
        case StoreUnavailableError():
            return Ending(WAITING_EXIT, text, "store")
        case SettingsError() | ArtifactError():
            return Ending(SETUP_EXIT, text)
        case FreshetError():
            return Ending(1, text)
        case OSError() if error.errno in _FULL:
            return Ending(1, f"the disk is full: {error.strerror} ({error.filename or home}); free some space")
    return Ending(1, f"{type(error).__name__}: {text}", unexpected=True)


def health() -> None:
    """Check whether the running stack is healthy: exit 0 if every role is ready, else 1.

    Example: `freshet health && echo ok`
    """
    import psutil

    settings = load()
    stack = stack_info.find(settings.home)
    if stack is None:
        raise FreshetError(f"no stack is running on {settings.home}; start one with `freshet up`")
    if not stack.ready:
        raise FreshetError("the stack is still starting")
    for name, pid in stack.pids.items():
        ready = name == "broker" or (stack_info.run_folder(settings.home) / f"{name}.ready").exists()
        if not ready or not psutil.pid_exists(pid):
            raise FreshetError(f"{name} is not ready")
    typer.echo(f"healthy: {', '.join(stack.pids)}")

