"""The `freshet` command: one file per group of subcommands; options in, a call, text out.

The work itself is in the other rooms.

May import: demo, replay, training, measurement, supervision, store, data, kafka, home, terminal.
"""

from __future__ import annotations

import os
import sys

import typer

from schemas.errors import FreshetError
from workers.cli import (
    calibrate,
    data,
    doctor,
    documents,
    evaluate,
    experiment,
    replay,
    service,
    stream,
    user,
    versions,
)

app = typer.Typer(
    name="freshet", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Keeps a recommender's LLM knowledge about its users fresh while behaviour streams in.\n\n"
         "New here? `freshet demo` shows all of it on this machine; `freshet up` runs it as a service.")
app.command()(data.demo)
app.command()(data.fit)
app.command()(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(replay.replay)
app.command()(service.up)
app.command(hidden=True)(service.role)
app.command()(service.health)
app.command()(stream.produce)
app.command()(stream.tail)
app.command()(stream.topics)
app.command()(user.user)
app.command()(experiment.experiment)
app.command()(doctor.doctor)
app.add_typer(versions.app, name="models")
app.command()(documents.schema)


def main() -> None:
    """Run the command line."""
    # Threads that wait for each other by spinning take the cores of those they wait for: with two processes on two
    # cores matrix products ran at 14/s, with one thread at 34/s, with two that sleep at 45/s. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except FreshetError as error:
        typer.secho(f"freshet: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
