"""`freshet models`: which fitted models there are, and which is in use."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from schemas.artifacts import Card, Registry
from schemas.settings import load


def models(
    select: Annotated[str, typer.Option(help="Version to use from the next start on.")] = "",
) -> None:
    """List the fitted model versions, oldest first, or choose one.

    Example: `freshet models --select 20260101-120000-ab12cd`
    """
    registry = Registry(load().home)
    if select:
        registry.select(select)
        typer.echo(f"in use: {select}; running roles take it at their next start")
        return
    current = registry.current()  # says what to do where there is none
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "version", "fitted", "data", "NDCG@10 reference", "with texts"):
        table.add_column(column)
    for version in registry.versions():
        card = Card.model_validate_json((registry.folder / version / "card.json").read_bytes())
        fitted = datetime.fromtimestamp(card.created_at, UTC).strftime("%Y-%m-%d %H:%M")
        shown = [f"{card.metrics[name]:.4f}" if name in card.metrics else ""
                 for name in ("reference_ndcg_at_10", "fused_ndcg_at_10")]
        table.add_row("→" if version == current else "", version, fitted, card.data_hash[:12], *shown)
    Console().print(table)
