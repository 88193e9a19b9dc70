"""`freshet schema`: writes the message schemas and the table of settings as documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("docs"),
) -> None:
    """Write one JSON Schema per topic, an AsyncAPI 3 document and the table of settings.

    Where deploy/ lies beside the folder, deploy/freshet.env is written too: every setting with its default.

    Example: `freshet schema --out docs`
    """
    from schemas import documents

    changed = documents.write(out)
    example = out.parent / "deploy" / "freshet.env"
    if example.parent.is_dir() and documents.write_env_file(example):
        changed.append(example)
    typer.echo("\n".join(str(path) for path in changed) or f"{out} is up to date")
