"""`freshet experiment`: shows the result of an online experiment so far."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError
from schemas.messages import Recommendation
from schemas.reading.framing import Schemas, frame_of
from schemas.reading.reader import EventReader, ReadEvent
from schemas.settings import load
from schemas.topics import BEHAVIOUR_EVENTS, RECOMMENDATIONS
from workers.terminal.durations import duration


def experiment(
    name: Annotated[str, typer.Argument(help="Name of the experiment; may be omitted if there is only one.")] = "",
    window: Annotated[float, typer.Option(
        min=0, help="Seconds of event time for which a user is measured, from their first recommendation.")] = 86_400.0,
    reward: Annotated[str, typer.Option(
        help="Score of an event: ndcg (NDCG@10) or hit (in the top ten or not).")] = "ndcg",
    alpha: Annotated[float, typer.Option(
        min=1e-6, max=0.5, help="Error probability of the interval; 0.05 gives a 95% interval.")] = 0.05,
    effect: Annotated[float | None, typer.Option(
        help="Forecast the users needed to detect this uplift. [default: a tenth of the mean reward]")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the interval over time (.svg, .png).")] = None,
) -> None:
    """Show how much serving knowledge improves recommendations, measured on the running stack's messages.

    To run an experiment, start the stack with `FRESHET_EXPERIMENT_NAME` and `FRESHET_EXPERIMENT_CONTROL`, the share of
    users who are served without knowledge. You may look at the interval at any time and stop as soon as it is narrow
    enough: looking does not weaken it. Choose window and reward before you look at results.

    Examples:

    `FRESHET_EXPERIMENT_NAME=spring FRESHET_EXPERIMENT_CONTROL=0.2 freshet up`, and later

    `freshet experiment spring --window 604800 --json spring.json --plot spring.svg`
    """
    from streams.registry.client import SchemaRegistry
    from workers.home.stack_info import connected
    from workers.kafka.reader import read_all, watermarks
    from workers.measurement.experiment import REWARDS, RunningExperiment, chosen, fold

    if reward not in REWARDS:
        raise FreshetError(f"--reward must be one of {', '.join(REWARDS)}, not {reward!r}")
    settings = connected(load())
    console = Console(highlight=False)
    topics = [BEHAVIOUR_EVENTS.name, RECOMMENDATIONS.name]
    records: list[tuple[float, ReadEvent | Recommendation]] = []
    schemas = Schemas() if settings.registry.url else None
    registry = SchemaRegistry(settings.registry, schemas) if schemas is not None else None
    reader = EventReader(settings.events, schemas)
    names: Counter[str] = Counter()
    unreadable = 0
    with Console(stderr=True).status(f"reading {' and '.join(topics)}"):
        cut = any(low > 0 for parts in watermarks(settings.kafka, topics).values() for low, _ in parts)
        for message in read_all(settings.kafka, topics, within_s=600.0):
            if message.value() is None and message.key():  # a user was erased
                continue
            try:
                if settings.kafka.plain(message.topic()) == BEHAVIOUR_EVENTS.name:
                    at = message.timestamp()[1] / 1000
                    headers = message.headers() or ()
                    if registry is not None and (frame := frame_of(message.value(), headers)) is not None:
                        asyncio.run(registry.learn([frame], waits=_give_up))
                    events, _ = reader.record(message.value(), headers)
                    records.extend((at, event) for event in events)
                else:
                    recommendation = decode(Recommendation, message.value())
                    names[recommendation.experiment] += 1
                    records.append((0.0, recommendation))
            except PoisonError:
                unreadable += 1
    del names[""]
    running = settings.experiment
    trial = RunningExperiment(chosen(replace(running, name=name or running.name), names), window, reward)
    with Console(stderr=True).status("computing"):
        fold(trial, records, settings.events.meaning)
        figures = trial.figures(alpha, effect)
    _show(console, figures)
    if cut:
        console.print("[yellow]The topics' oldest records have been deleted (retention). Users who entered then are "
                      "missing, or count from a later time. Keep records for as long as the experiment runs.[/yellow]")
    if unreadable:
        console.print(f"{unreadable:,} records could not be read and were skipped.")
    if json is not None:
        json.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    if plot is not None:
        from workers.demo import plots

        plots.save(plots.uplift(figures), plot)


def _give_up(why: str) -> None:
    raise FreshetError(why)


def _show(console: Console, figures: dict[str, Any]) -> None:
    low, high = figures["interval"]
    console.print(
        f"experiment [bold]{figures['name']}[/bold]: {figures['control_share']:.1%} of the users are in the control "
        f"group, served from behaviour alone\nreward: mean {figures['reward']} of a user's events in their first "
        f"{duration(figures['window_s'])}; 0 for a user without events")
    table = Table()
    for column in ("arm", "users", "with events", "events", figures["reward"]):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, part in figures["arms"].items():
        table.add_row(name, f"{part['users']:,}", f"{part['users_with_events']:,}", f"{part['events']:,}",
                      "–" if part["reward"] is None else f"{part['reward']:.4f}")
    console.print(table)
    uplift = "not known yet" if figures["uplift"] is None else f"{figures['uplift']:+.4f}"
    console.print(
        f"uplift: {uplift}, {1 - figures['alpha']:.0%} interval [{low:+.4f}, {high:+.4f}]. "
        f"{figures['conclusion']}\nYou may look at the interval at any time: the probability that it ever excludes the "
        f"true uplift is at most {figures['alpha']:.0%}.", markup=False)
    if figures["open_users"]:
        console.print(f"{figures['open_users']:,} more users have entered; they count once their window has closed.")
    forecast = figures["forecast"]
    if forecast["users_needed"] is not None:
        days = forecast["days_left"]
        left = "" if days is None else f", {duration(days * 86_400)} more at the current rate" if days else \
            ", which have been reached"
        console.print(f"Detecting an uplift of {forecast['effect']:+.4f} takes about "
                      f"{forecast['users_needed']:,.0f} users{left}.")
