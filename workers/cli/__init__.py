"""The `freshet` command line: one file per group of subcommands. Each parses options, calls another room and prints.

May import: demo, replay, training, writing, operating, measurement, supervision, catalogue, store, data, kafka, home,
terminal.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from schemas.errors import FreshetError
from workers.cli import (
    calibrate,
    data,
    dead_letters,
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
from workers.supervision.ending import ending

app = typer.Typer(
    name="freshet", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Freshet keeps what a recommender knows about its users fresh. It generates this knowledge with an LLM and "
         "refreshes it while behaviour events stream in.\n\n"
         "New here? Run `freshet demo`: it fits models on a public data set, runs the whole system on this machine and "
         "writes a report. With your own data: `freshet fit --data DIR`, then `freshet up`.")
app.command()(data.demo)
app.command()(data.fit)
app.command()(data.describe)
app.command()(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(replay.replay)
app.command()(service.up)
app.command(hidden=True)(service.role)
app.command()(service.health)
app.command()(stream.produce)
app.command()(stream.catalogue)
app.command()(stream.tail)
app.command()(stream.topics)
app.command()(dead_letters.dead_letters)
app.command(context_settings={"ignore_unknown_options": True})(user.user)  # ids may begin with "-"
app.command(context_settings={"ignore_unknown_options": True})(user.forget)  # as user
app.command()(experiment.experiment)
app.command()(doctor.doctor)
app.add_typer(versions.app, name="models")
app.command()(documents.schema)


def main() -> None:
    """Run the command line."""
    # By default OpenMP threads wait by spinning, which takes cores from the threads they wait for. Matrix products of
    # two processes on two cores: 14/s with spinning threads, 34/s with one thread, 45/s with threads that sleep. torch
    # reads this variable when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except FreshetError as error:
        typer.secho(f"freshet: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except OSError as error:
        end = ending(error, Path.cwd())
        if end.unexpected:
            raise
        typer.secho(f"freshet: {end.text}", fg=typer.colors.RED, err=True)
        sys.exit(end.code)
