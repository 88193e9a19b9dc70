"""`freshet models`: lists fitted models and adapters, selects a version, and rolls back."""

from __future__ import annotations

import getpass
import os
import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from schemas.deployments import Attempt, Deployed, Deployments, base_of
from schemas.errors import FreshetError
from schemas.messages import ModelUpdate
from schemas.settings import load

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    select: Annotated[str, typer.Option(
        help="Switch to this fitted version. Running roles load it within seconds.")] = "",
) -> None:
    """List the fitted model versions and their adapters, oldest first, or switch to another version.

    An arrow marks the version in use.

    Examples:

    `freshet models --select 20260101-120000-ab12cd`

    `freshet models rollback`
    """
    if context.invoked_subcommand is not None:
        return
    from workers.operating.announcing import announce_model

    settings = load()
    deployments = Deployments(settings.home)
    if select:
        update = deployments.select(select, time.time(), _author())
        notice = announce_model(settings, update)
        typer.echo(f"in use: {update.model_version}; {notice}")
        return
    in_use = deployments.in_use()  # raises an error with instructions if there is none
    withdrawn = deployments.withdrawn()
    console = Console()
    console.print(_versions(deployments, in_use, withdrawn))
    if attempts := deployments.attempts():
        console.print(_adapters(attempts, in_use, withdrawn))


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Reason to write into the deployment log.")] = "",
) -> None:
    """Go back to what was in use before: the previous adapter, the model without adapter, or the previous model.

    Running roles load it within seconds. What is rolled back is withdrawn: no later rollback chooses it, only
    `freshet models --select` brings it back. Its knowledge is no longer used and is generated again as users act.

    Example: `freshet models rollback --reason "uplift fell on Tuesday"`
    """
    from workers.operating.announcing import announce_model

    settings = load()
    deployments = Deployments(settings.home)
    before = deployments.in_use().model_version
    update = deployments.roll_back(time.time(), reason, _author())
    notice = announce_model(settings, update)
    typer.echo(f"rolled back {before}; in use: {update.model_version}; {notice}")


def _author() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _versions(deployments: Deployments, in_use: ModelUpdate, withdrawn: dict[str, Deployed]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "version", "system", "fitted", "data", "NDCG@10 reference", "with texts", "state"):
        table.add_column(column, no_wrap=column == "version", overflow="fold")  # the version is what --select takes
    for version in deployments.registry.versions():
        mark = "→" if version == base_of(in_use.model_version) else ""
        try:
            card = deployments.registry.card(version)
        except FreshetError as error:
            table.add_row(mark, version, *[""] * 5, str(error))
            continue
        shown = [f"{card.metrics[name]:.4f}" if name in card.metrics else ""
                 for name in ("reference_ndcg_at_10", "fused_ndcg_at_10")]
        table.add_row(mark, version, card.system, _time(card.created_at), card.data_hash[:12], *shown,
                      _rolled_back(withdrawn.get(version)))
    return table


def _adapters(attempts: list[Attempt], in_use: ModelUpdate, withdrawn: dict[str, Deployed]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "adapter", "base model", "created", "state", "reason"):
        table.add_column(column, overflow="fold")
    for attempt in attempts:
        state = "published" if attempt.published else "rejected"
        if attempt.model_version in in_use.withdrawn:
            state = _rolled_back(withdrawn.get(attempt.model_version)) or "rolled back"
        mark = "→" if attempt.model_version == in_use.model_version else ""
        table.add_row(mark, attempt.name, attempt.base, _time(attempt.created_at), state, attempt.reason)
    return table


def _rolled_back(line: Deployed | None) -> str:
    if line is None:
        return ""
    by = f" by {line.author}" if line.author else ""
    return f"rolled back {_time(line.update.published_at)}{by}" + (f": {line.reason}" if line.reason else "")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
