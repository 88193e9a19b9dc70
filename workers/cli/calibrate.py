"""`freshet calibrate`: sets the drift threshold for a given rate of false alarms and checks it on other users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.settings import load
from workers.cli.data import DataFolder


def calibrate(
    data: DataFolder = None,
    false_alarm_every: Annotated[float, typer.Option(
        min=1.0, help="Accept one false alarm per this many events of a user. Each false alarm costs one LLM call. A "
                      "smaller number detects real drift sooner.")] = 200.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the figures, but change nothing.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Go back to the threshold that `freshet fit` chose.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed for splitting the users and shuffling histories.")] = 0,
) -> None:
    """Set the drift threshold of the current model for a given rate of false alarms, and check it.

    Drift means that a user's interests have moved away from what their knowledge was built on. A false alarm is drift
    detected where there is none: in a history whose items were shuffled. Half of the users choose the threshold, the
    other half check it. If the other half has significantly more false alarms than requested, nothing is changed and
    the exit code is 1. Running roles use the new threshold after their next start. Models and knowledge do not change.

    If you pass the data set that the model was fitted on, only the part used for fitting is read. Any other data set is
    read completely.

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
        typer.echo(f"{artifact.model_version} uses the fitted threshold h = "
                   f"{artifact.calibration().drift_threshold:.3g} again after the next start")
        return
    folder: Path = data or movielens.fetch(settings.home, typer.echo)
    typer.echo(f"model {artifact.model_version}: shuffling the histories in {folder} …")
    result = recalibrate(artifact, folder, settings, false_alarm_every, seed=seed)
    typer.echo(report(result))
    result.require()
    if settings.refresh.drift_threshold is not None:
        typer.secho(f"note: refresh.drift_threshold is set to {settings.refresh.drift_threshold:g} and takes "
                    "precedence; unset it to use the calibrated threshold", fg=typer.colors.YELLOW)
    if dry_run:
        typer.echo("nothing changed (--dry-run)")
        return
    typer.echo(f"written to {write(artifact, result)}; used after the next start of `freshet up`")
