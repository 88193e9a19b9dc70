"""`freshet models`: which models and adapters there are, which is in use, and the way back."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from schemas.artifacts import Card, Registry
from schemas.deployments import Attempt, Deployments, base_of
from schemas.errors import FreshetError
from schemas.messages import ModelUpdate
from schemas.settings import Settings, load

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    select: Annotated[str, typer.Option(help="Fitted version to put into use; running roles load it at once.")] = "",
) -> None:
    """List the fitted model versions and the adapters taught to them, oldest first, or choose another.

    Examples:

    `freshet models --select 20260101-120000-ab12cd`

    `freshet models rollback`
    """
    if context.invoked_subcommand is not None:
        return
    settings = load()
    deployments = Deployments(settings.home)
    if select:
        update = deployments.select(select, time.time())
        told = _publish(settings, update)
        typer.echo(f"in use: {update.model_version}; {told}")
        return
    in_use = deployments.in_use()  # says what to do where there is none
    console = Console()
    console.print(_versions(deployments.registry, in_use))
    if attempts := deployments.attempts():
        console.print(_adapters(attempts, in_use))


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Noted in the log of what was in use.")] = "",
) -> None:
    """Put what was in use before back into use: the adapter before, the model without, the model before.

    Running roles load it at once. Knowledge made by what is rolled back is not used any more; it is made anew as users
    act.

    Example: `freshet models rollback --reason "uplift fell on Tuesday"`
    """
    settings = load()
    deployments = Deployments(settings.home)
    before = deployments.in_use().model_version
    update = deployments.roll_back(time.time(), reason)
    told = _publish(settings, update)
    typer.echo(f"rolled back {before}; in use: {update.model_version}; {told}")


def _publish(settings: Settings, update: ModelUpdate) -> str:
    """Tell running roles, and return what to say of it."""
    from schemas.topics import MODEL_UPDATES
    from workers.home.stack_info import connected
    from workers.kafka.outbox import Outbox, Output

    try:
        settings = connected(settings)
    except FreshetError:
        return "nothing runs, so it counts from the next start on"
    outbox = Outbox(settings.kafka, "operator")
    try:
        outbox.send([Output(MODEL_UPDATES, update.model_version, update)])
    except FreshetError as error:
        raise FreshetError(
            f"noted, so that it counts from the next start on, but running roles were not told: {error}") from error
    finally:
        outbox.close()
    return "running roles load it now"


def _versions(registry: Registry, in_use: ModelUpdate) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "version", "system", "fitted", "data", "NDCG@10 reference", "with texts"):
        table.add_column(column, no_wrap=column == "version")  # what --select takes
    for version in registry.versions():
        card = Card.model_validate_json((registry.folder / version / "card.json").read_bytes())
        shown = [f"{card.metrics[name]:.4f}" if name in card.metrics else ""
                 for name in ("reference_ndcg_at_10", "fused_ndcg_at_10")]
        mark = "→" if version == base_of(in_use.model_version) else ""
        table.add_row(mark, version, card.system, _time(card.created_at), card.data_hash[:12], *shown)
    return table


def _adapters(attempts: list[Attempt], in_use: ModelUpdate) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "adapter", "of", "made", "", "why"):
        table.add_column(column, overflow="fold")
    for attempt in attempts:
        withdrawn = attempt.model_version in in_use.withdrawn
        state = "rejected" if not attempt.published else "rolled back" if withdrawn else "published"
        mark = "→" if attempt.model_version == in_use.model_version else ""
        table.add_row(mark, attempt.name, attempt.base, _time(attempt.created_at), state, attempt.reason)
    return table


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
