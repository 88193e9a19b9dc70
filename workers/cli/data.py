"""`freshet fit` and `freshet demo`: fit models on a data set, and run the whole system on one machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from schemas.settings import load

DataFolder = Annotated[
    Path | None, typer.Option(help="Folder with events.csv and items.jsonl, the folder of a public data set, or a file "
                                   "of events. [default: download MovieLens-100K]")]


def fit(
    data: DataFolder = None,
    system: Annotated[str, typer.Option(
        help="The system to fit and serve; `freshet evaluate --list` shows all. "
             "[default: the setting fit.system, which is freshet]")] = "",
    encoding: Annotated[str, typer.Option(
        help="Encoding of the files, such as cp1252. [default: the setting events.encoding, else UTF-8]")] = "",
    columns: Annotated[str, typer.Option(
        help="Names of the columns of an events file without a header: user_id,item_id,rating,timestamp.")] = "",
) -> None:
    """Fit the models on the first part of the timeline and calibrate when knowledge is refreshed.

    `events.csv` has the columns user_id, item_id, timestamp and optionally event_type. `items.jsonl` has the fields
    item_id, title and attributes (a list). MovieLens, Amazon reviews, Yelp, RetailRocket and RecBole's atomic files are
    recognised by their files' names; docs/events.md says what else is read. Stages whose data and settings did not
    change are reused from the last fit.

    The fitted model is put into use: `freshet up` serves it, and roles that run load it within seconds. The systems
    `dense` and `generative` have no knowledge about users: they never refresh anything, and serving them needs no
    language model.

    Examples:

    `freshet fit --data my-shop`

    `freshet fit --data my-shop --system lwgr`

    `freshet fit --data Beauty_5.jsonl.gz`
    """
    from models.systems.table import system_named
    from schemas.artifacts import Registry
    from workers.data import movielens
    from workers.terminal.stages import Stages
    from workers.training.fit import run, still_improving

    settings = load()
    if system:
        settings = replace(settings, fit=replace(settings.fit, system=system))
    if encoding or columns:
        settings = replace(settings, events=replace(
            settings.events, encoding=encoding or settings.events.encoding, columns=columns or settings.events.columns))
    system_named(settings.fit.system)  # fail on a wrong name before anything is downloaded
    folder = data or movielens.fetch(settings.home, typer.echo)
    with Stages() as stages:
        artifact = run(settings, folder, stages)
    typer.echo(f"fitted {artifact.model_version} in {artifact.folder}")
    if cut := still_improving(artifact.card):
        typer.echo(f"scorers still improving in the last of {settings.fit.epochs} epochs: {', '.join(cut)}. Set "
                   f"FRESHET_FIT_EPOCHS={4 * settings.fit.epochs} to train until held-out events stop improving")
    if Registry(settings.home).current() == artifact.model_version:
        typer.echo("it is in use: `freshet up` starts with it, roles that run load it within seconds")


def demo(
    data: DataFolder = None,
    speed: Annotated[float, typer.Option(
        help="Speed-up: seconds of event time per second. 0 = as fast as answers arrive.")] = 0.0,
    events: Annotated[int, typer.Option(help="Number of events to send after the training part. 0 = all.")] = 0,
    window: Annotated[int, typer.Option(
        help="Maximum number of events waiting for an answer. 0 = 256, fewer in a short run.")] = 0,
    per_user: Annotated[int | None, typer.Option(
        help="Maximum number of events of one user waiting for an answer. A small number makes sure that each event is "
             "judged by a recommendation that includes the user's earlier events; other users' events may overtake. "
             "0 = no limit, exact time order. [default: 2 with --speed 0, else 0]"
    )] = None,
    out: Annotated[Path, typer.Option(help="Parent folder for the report.")] = Path("runs"),
) -> None:
    """Run the whole system on this machine and write a report: fit, start, stream events, recommend.

    Models are fitted on the first part of the timeline. The rest is sent as events: in time order per user, and in
    exact time order with --speed. Each event is compared with what was recommended to its user before it. The results
    are in runs/TIME/report.html and report.json. Ctrl-C stops the demo cleanly and still writes the report.

    Examples:

    `freshet demo --events 2000`

    `freshet demo --data my-shop --speed 3600`
    """
    from workers.demo.run import Demo

    limit = per_user if per_user is not None else 0 if speed else 2
    Demo(load(), data, speed=speed, events=events, window=window, per_user=limit, out=out).run()
