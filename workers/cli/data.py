"""`freshet fit` and `freshet demo`: models out of a data set, and the main job shown on one machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from schemas.settings import load

DataFolder = Annotated[
    Path | None, typer.Option(help="Folder with events.csv and items.jsonl; without it MovieLens-100K is downloaded.")]


def fit(
    data: DataFolder = None,
    system: Annotated[str, typer.Option(
        help="Row of the table of systems (`freshet evaluate --list` shows it) to fit and then serve. "
             "[default: fit.system of the settings, which is freshet]")] = "",
) -> None:
    """Fit reference and knowledge models on the first part of the timeline, and calibrate when to refresh.

    Stages whose data and settings did not change are taken from the last time. `events.csv` has the columns user_id,
    item_id, timestamp and, if you like, event_type; `items.jsonl` has item_id, title and attributes (a list).

    What is fitted becomes the current version: `freshet up` serves it, whichever system it is. `dense` and `generative`
    have no knowledge of users: nothing is ever refreshed, and serving them takes no language model.

    Examples:

    `freshet fit --data my-shop`

    `freshet fit --data my-shop --system lwgr`
    """
    from models.systems.table import system_named
    from workers.data import movielens
    from workers.terminal.stages import Stages
    from workers.training.fit import cut_short, run

    settings = load()
    if system:
        settings = replace(settings, fit=replace(settings.fit, system=system))
    system_named(settings.fit.system)  # a wrong name is said before anything is downloaded
    folder = data or movielens.fetch(settings.home, typer.echo)
    with Stages() as stages:
        artifact = run(settings, folder, stages)
    typer.echo(f"fitted {artifact.model_version} in {artifact.folder}")
    if cut := cut_short(artifact.card):
        typer.echo(f"scorers ({', '.join(cut)}): the last of {settings.fit.epochs} epochs was the best; "
                   f"FRESHET_FIT_EPOCHS={4 * settings.fit.epochs} lets them go on until held-out events say enough")
    typer.echo(f"`freshet models --select {artifact.model_version}` has running roles load it")


def demo(
    data: DataFolder = None,
    speed: Annotated[float, typer.Option(help="Seconds of event time per second; 0 = as fast as answers come.")] = 0.0,
    events: Annotated[int, typer.Option(help="Events to produce, from the split on; 0 = all.")] = 0,
    window: Annotated[int, typer.Option(
        help="Events without an answer at a time, at most; 0 = 256, less for a short run.")] = 0,
    per_user: Annotated[int | None, typer.Option(
        help="The same of one user, so that an event is judged by a recommendation that knows the ones before; other "
             "users' events may then overtake a little. 0 = no limit, exact time order. [default: 2, with --speed 0]"
    )] = None,
    out: Annotated[Path, typer.Option(help="Where the folder with the report goes.")] = Path("runs"),
) -> None:
    """Show the main job on this machine: fit, start everything, stream, recommend, report.

    Models are fitted on the first part of the timeline; the rest is produced in time order (every user's own, and with
    --speed that of all), each event predicted from what was recommended before it. Ends with runs/TIME/report.html and
    report.json. Ctrl-C ends it cleanly and still writes the report.

    Examples:

    `freshet demo --events 2000`

    `freshet demo --data my-shop --speed 3600`
    """
    from workers.demo.run import Demo

    limit = per_user if per_user is not None else 0 if speed else 2
    Demo(load(), data, speed=speed, events=events, window=window, per_user=limit, out=out).run()
