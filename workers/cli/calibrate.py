"""`freshet calibrate`: the drift threshold for a stated rate of false alarms, checked on other users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.settings import load
from workers.cli.data import DataFolder


def calibrate(
    data: DataFolder = None,
    false_alarm_every: Annotated[float, typer.Option(
        min=1.0, help="Events of a user per needless refresh, where nothing has drifted. Each costs one LLM call; more "
                      "of them find drift sooner.")] = 200.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the figures, change nothing.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Back to the threshold that `freshet fit` chose.")] = False,
    seed: Annotated[int, typer.Option(help="Of the halves and of the shuffles.")] = 0,
) -> None:
    """Choose the drift threshold of the model in use for a stated rate of false alarms, and check it.

    A false alarm is drift seen where there is none: in histories whose items were put in random order. Half of the
    users choose the threshold, the other half check it. If false alarms are more frequent there than stated, beyond
    what chance explains, nothing is changed and the exit code is 1. Running roles take the new threshold at their
    next start; models and knowledge stay as they are.

    With the data the model was fitted on, only the part it was fitted on is used; with other data all of it.

    Examples:

    `freshet calibrate --data my-shop --false-alarm-every 500`

    `freshet calibrate --reset`
    """
    from schemas.artifacts import Registry
    from workers.data import movielens
    from workers.training.thresholds import recalibrate, report, write

    settings = load()
    artifact = Registry(settings.home).open()
    if reset:
        artifact.recalibration.unlink(missing_ok=True)
        typer.echo(f"{artifact.model_version} uses h = {artifact.calibration().drift_threshold:.3g}, as fitted, from "
                   "the next start on")
        return
    folder: Path = data or movielens.fetch(settings.home, typer.echo)
    typer.echo(f"model {artifact.model_version}: shuffling users' histories of {folder} …")
    result = recalibrate(artifact, folder, settings, false_alarm_every, seed=seed)
    typer.echo(report(result))
    result.require()
    if settings.refresh.drift_threshold is not None:
        typer.secho(f"note: refresh.drift_threshold is set to {settings.refresh.drift_threshold:g} and goes first; "
                    "unset it for the calibrated one to be used", fg=typer.colors.YELLOW)
    if dry_run:
        typer.echo("nothing changed (--dry-run)")
        return
    typer.echo(f"written to {write(artifact, result)}; used from the next start of `freshet up` on")
