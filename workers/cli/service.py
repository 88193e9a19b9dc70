"""`freshet up`, `freshet health`, and the hidden `freshet role`, which runs one process of a stack."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import closing, suppress
from dataclasses import replace
from importlib import import_module
from types import FrameType
from typing import Annotated
from urllib.parse import urlsplit

import typer

from schemas.artifacts import Registry
from schemas.endings import note_error
from schemas.errors import FreshetError
from schemas.settings import load
from schemas.watch.tracing import start
from workers.home import stack_info
from workers.supervision.ending import ending
from workers.supervision.logs import configure, redacted

log = logging.getLogger(__name__)

# Role → module whose `main(settings)` runs it until SIGTERM.
ROLE_MODULES = {
    "store": "workers.store.embedded.server",
    "streams": "streams.service.app",
    "knowledge": "workers.roles.knowledge.worker",
    "ranking": "workers.roles.ranking.worker",
    "alignment": "workers.roles.alignment.worker",
    "guard": "workers.roles.guard",
    "console": "workers.console.role",
}


def up(
    roles: Annotated[str, typer.Option(
        help="Roles to run, comma-separated: streams, knowledge, ranking, guard, alignment, console. "
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
    from workers.supervision.healthz import HealthServer
    from workers.supervision.letters import Notices, console_url, read_counters
    from workers.supervision.stack import DEFAULT_ROLES, Stack

    settings = load()
    if port is not None:
        settings = replace(settings, kafka=replace(settings.kafka, port=port))
    names = [name.strip() for name in roles.split(",") if name.strip()] or \
        [*DEFAULT_ROLES, *(["console"] if settings.console.port else [])]
    version = Registry(settings.home.absolute()).current()
    asked_to_stop: list[int] = []

    def _stop(number: int, _: FrameType | None) -> None:
        asked_to_stop.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, _stop)
    typer.echo(f"starting {', '.join(names)} with model {version}")
    try:
        with HealthServer(settings), Stack(settings, names, patient=True, say=typer.echo) as stack:
            prefix = stack.settings.kafka.prefix
            typer.echo(f"broker: {stack.settings.kafka.bootstrap}"
                       + (f", names begin with {prefix}" if prefix else ""))
            if stack.settings.qdrant.url:
                typer.echo(f"store: {stack.settings.qdrant.url}")
            if stack.settings.log.to == "file":
                typer.echo(f"logs: {stack_info.run_folder(stack.settings.home)}")
            if url := console_url(stack.settings):
                typer.echo(f"console: {url}")
            typer.echo("ready")
            notices = Notices()
            while True:
                stack.check()
                for line in notices.lines(read_counters(stack.settings), time.monotonic()):
                    typer.echo(line)
                time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("stopped")
        if signal.SIGTERM not in asked_to_stop:  # SIGTERM from a service manager is a normal end
            raise typer.Exit(130) from None


def role(name: Annotated[str, typer.Argument(help=f"One of {', '.join(ROLE_MODULES)}.")]) -> None:
    """Run one role in this process. `freshet up` starts the roles this way. Example: `freshet role ranking`."""
    if name not in ROLE_MODULES:
        raise FreshetError(f"unknown role {name!r}; roles are {', '.join(ROLE_MODULES)}")
    from workers.supervision.healthz import role_server

    settings = load()
    configure(settings, name)
    try:
        module = import_module(ROLE_MODULES[name])
        with role_server(settings, name), closing(start(name, settings.tracing.ratio)):
            if name == "store":
                # The process that starts the stack chooses the port, so the other roles find the store again after a
                # restart.
                module.main(settings, port=urlsplit(settings.qdrant.url).port or 0)
            else:
                module.main(settings)
    except Exception as error:
        end = ending(error, settings.home)
        text = redacted(end.text, settings)
        note_error(settings.home, name, text, end.waits_for)
        if end.unexpected:
            log.exception("%s ends", name)
        with suppress(OSError):  # its log may be on the disk that is full
            typer.secho(f"freshet: {text}", fg=typer.colors.RED, err=True)
        raise typer.Exit(end.code) from None


def health(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line per role, also where all is well.")] = False,
) -> None:
    """Check whether the running stack is healthy: whether it makes progress, not only whether it lives.

    Exits with 0 if every role works, 1 if one hangs, stands still or crashed, or nothing runs; 3 while it starts;
    4 while it waits for the broker or the store.

    Example: `freshet health && echo ok`
    """
    from workers.supervision.health import EXIT_CODES, read

    settings = load()
    found = read(settings, time.monotonic())
    if found is None:
        raise FreshetError(f"no stack is running on {settings.home}; start one with `freshet up`")
    names = ", ".join(role.name for role in found.roles)
    typer.echo(f"healthy: {names}" if found.state == "ok" else f"{found.state}: {'; '.join(found.reasons)}")
    for role in found.roles if verbose else ():
        typer.echo(role.line())
    if found.state != "ok":
        raise typer.Exit(EXIT_CODES[found.state])
