"""`freshet evaluate`: trains one system and measures it on every held-out event."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from schemas.errors import FreshetError
from schemas.settings import load
from workers.cli.data import DataFolder

if TYPE_CHECKING:
    from workers.training.evaluate import EvaluationRun

SHOWN = ("recall_at_5", "ndcg_at_5", "recall_at_10", "ndcg_at_10", "harmed_fraction")


def evaluate(
    data: DataFolder = None,
    system: Annotated[str, typer.Option(help="The system to train; `--list` shows all.")] = "dense",
    protocol: Annotated[str, typer.Option(
        help="leave-one-out (each user's last event) or stream-time (every event after the split).")] = "stream-time",
    control: Annotated[str, typer.Option(help="A control variant of the system; `--list` shows them.")] = "",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 42,
    ages: Annotated[bool, typer.Option(
        "--ages", help="Also measure with knowledge that is 1, 4 and 16 events old, and frozen at the split.")] = False,
    events: Annotated[int, typer.Option(
        help="Predict at most this many events, the same for every system and seed. 0 = all.", min=0)] = 0,
    ties: Annotated[str, typer.Option(
        help="strict: events at the same time are not predicted from each other. shuffled, file: they are, in random "
             "order or in the order of the file, as in published figures.")] = "strict",
    json: Annotated[Path | None, typer.Option(help="Also write the result to this file.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the systems and their controls, and exit.")] = False,
) -> None:
    """Train a system and measure how well it ranks the catalogue for every held-out event.

    A finished run is stored under `evaluations/` and reused as long as the data, the settings and the code of the
    models do not change. The headline is on items known from the training part. A system with knowledge is also
    compared with its own reference, which ranks without knowledge: the gain in NDCG@10 with its 95% interval (paired
    bootstrap over users), the share of the reference's top-10 hits that it loses, and the share of users whose events
    became less likely by more than 0.1 nats.

    Examples:

    `freshet evaluate --system dense --protocol leave-one-out`

    `freshet evaluate --data my-shop --system lwgr --control shuffled-knowledge --seed 1 --json result.json`
    """
    from workers.data import movielens
    from workers.terminal.stages import Stages
    from workers.training.evaluate import EvaluationRun, Evaluator

    if list_:
        _list()
        return
    settings = load()
    wanted = EvaluationRun(system, protocol.replace("-", "_"), control or None, seed, ages, events or None, ties)
    _check(wanted)
    folder = data or movielens.fetch(settings.home, typer.echo)
    with Stages() as stages:
        evaluator = Evaluator(settings, folder, stages)
        result = evaluator.run(wanted)
        show(result, evaluator.gain(wanted))
    if json is not None:
        try:
            json.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise FreshetError(f"{json} cannot be written: {error.strerror}") from None


def _check(wanted: EvaluationRun) -> None:
    """Raise an error for a wrong name before anything is downloaded or read."""
    from models.measuring.protocols import PROTOCOLS, TIES
    from models.systems.table import system_named

    system_named(wanted.system, wanted.control)
    if wanted.protocol not in PROTOCOLS:
        names = ", ".join(name.replace("_", "-") for name in PROTOCOLS)
        raise FreshetError(f"unknown protocol {wanted.protocol.replace('_', '-')!r}; there are {names}")
    if wanted.ties not in TIES:
        raise FreshetError(f"unknown order of ties {wanted.ties!r}; there are {', '.join(TIES)}")


def show(result: dict[str, Any], gain: tuple[float, float, float] | None, console: Console | None = None) -> None:
    """Print a result as tables.

    Args:
        gain: mean gain in NDCG@10 over the system's reference, and the bounds of its interval; None = no reference.
    """
    console = console or Console()
    name = result["system"] + (f" ({result['control']})" if result["control"] else "")
    ties = "" if result.get("ties", "strict") == "strict" else f", ties {result['ties']}"
    table = Table(title=f"{name} on {result['dataset']}, {result['protocol']}{ties}, seed {result['seed']}",
                  title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("events")
    for column in ("n", *SHOWN[:4]):
        table.add_column(column.replace("_at_", "@"), justify="right")
    parts = {"known items": result["metrics"]} | {
        f"{by.replace('_', ' ')} {bucket}": figures
        for by, buckets in result["by"].items() for bucket, figures in buckets.items()
    } | {f"knowledge {age}": figures for age, figures in result.get("ages", {}).items()}
    for title, figures in parts.items():
        if figures["n"]:
            table.add_row(title, f"{figures['n']:,.0f}", *(f"{figures[key]:.4f}" for key in SHOWN[:4]))
    console.print(table)
    if (harmed := result["metrics"]["harmed_fraction"]) is not None:
        events = result["metrics"]["harmed_events"]
        console.print(f"less likely by more than 0.1 nats: {harmed:.1%} of users, {events:.1%} of events; "
                      f"lost: {result['metrics']['hits_lost']:.1%} of the reference's hits among ten", highlight=False)
    if gain is not None:
        console.print(f"NDCG@10 over its reference: {gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}]", highlight=False)
    console.print(f"{result['seconds']:.0f} s", highlight=False)


def _list() -> None:
    from models.systems.table import CONTROLS, SYSTEMS

    console = Console()
    for system in SYSTEMS.values():
        console.print(f"{system.name:<12}{system.about}", highlight=False)
        for control in system.controls():
            console.print(f"{'':<12}--control {control}: {CONTROLS[control]}", highlight=False)
