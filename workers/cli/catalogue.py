"""`freshet catalogue`: the items of the topic `catalogue` as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.settings import load


def catalogue(
    file: Annotated[Path, typer.Argument(help="File of JSON lines, such as items.jsonl beside events.csv. Its items "
                                              "stay, as far as the topic says nothing else of them.")],
) -> None:
    """Write the items of the topic `catalogue` into a file, for the next `freshet fit`.

    Examples:

    `freshet catalogue my-shop/items.jsonl`

    `freshet fit --data my-shop`
    """
    from workers.catalogue.export import export
    from workers.home.stack_info import connected

    items, came, bad = export(connected(load()).kafka, file)
    typer.echo(f"{file}: {items:,} items, {came:,} of them as the topic has them")
    if bad:
        typer.echo(f"{bad:,} records of the topic cannot be used; `freshet dead-letters` lists them")
