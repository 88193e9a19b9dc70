"""`freshet experiment`: what an online experiment has found so far."""

from __future__ import annotations

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
from schemas.events import BehaviourEvent, parse_event
from schemas.messages import Recommendation
from schemas.settings import load
from schemas.topics import BEHAVIOUR_EVENTS, RECOMMENDATIONS
from workers.terminal.durations import duration


def experiment(
    name: Annotated[str, typer.Argument(help="The experiment; not needed where the messages hold only one.")] = "",
    window: Annotated[float, typer.Option(
        min=0, help="Seconds of event time a user counts for, from the first recommendation on.")] = 86_400.0,
    reward: Annotated[str, typer.Option(help="Of each event: ndcg (NDCG@10) or hit (was it among the ten?).")] = "ndcg",
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Error probability of the interval.")] = 0.05,
    effect: Annotated[float | None, typer.Option(
        help="Uplift to forecast for; without it, a tenth of the mean reward.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON, too.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the interval over time (.svg, .png).")] = None,
) -> None:
    """Show the uplift of knowledge over behaviour alone, from the running stack's messages.

    `FRESHET_EXPERIMENT_NAME` and `FRESHET_EXPERIMENT_CONTROL` make a running stack hold out users. The interval may be
    looked at at any time, and the experiment stopped when it says enough: looking does not spend it. Choose window and
    reward before you look, not by what they show.

    Examples:

    `FRESHET_EXPERIMENT_NAME=spring FRESHET_EXPERIMENT_CONTROL=0.2 freshet up`, and later

    `freshet experiment spring --window 604800 --json spring.json --plot spring.svg`
    """
    from workers.home.stack_info import connected
    from workers.kafka.reader import read_all, watermarks
    from workers.measurement.experiment import REWARDS, RunningExperiment, chosen, fold

    if reward not in REWARDS:
        raise FreshetError(f"--reward is one of {', '.join(REWARDS)}, not {reward!r}")
    settings = connected(load())
    console = Console(highlight=False)
    topics = [BEHAVIOUR_EVENTS.name, RECOMMENDATIONS.name]
    records: list[tuple[float, BehaviourEvent | Recommendation]] = []
    names: Counter[str] = Counter()
    unreadable = 0
    with Console(stderr=True).status(f"reading {' and '.join(topics)}"):
        cut = any(low > 0 for parts in watermarks(settings.kafka, topics).values() for low, _ in parts)
        for message in read_all(settings.kafka, topics, within_s=600.0):
            try:
                if message.topic() == BEHAVIOUR_EVENTS.name:
                    records.append((message.timestamp()[1] / 1000, parse_event(message.value())))
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
        fold(trial, records)
        figures = trial.figures(alpha, effect)
    _show(console, figures)
    if cut:
        console.print("[yellow]The topics' oldest records are gone (retention): users who entered then are missing or "
                      "seem to have entered later. Keep records for as long as the experiment runs.[/yellow]")
    if unreadable:
        console.print(f"{unreadable:,} records could not be read and were left out.")
    if json is not None:
        json.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    if plot is not None:
        from workers.demo import plots

        plots.save(plots.uplift(figures), plot)


def _show(console: Console, figures: dict[str, Any]) -> None:
    low, high = figures["interval"]
    console.print(
        f"experiment [bold]{figures['name']}[/bold]: {figures['control_share']:.1%} of users are control, served what "
        f"behaviour alone says\nreward: {figures['reward']} of a user's events in their first "
        f"{duration(figures['window_s'])}, mean per user; 0 for who did nothing")
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
        f"{figures['conclusion']}\nThe interval may be looked at at any time: in at most {figures['alpha']:.0%} of "
        "experiments does it ever exclude the truth.", markup=False)
    if figures["open_users"]:
        console.print(f"{figures['open_users']:,} more users have entered; they count when their window has closed.")
    forecast = figures["forecast"]
    if forecast["users_needed"] is not None:
        days = forecast["days_left"]
        left = "" if days is None else f", {duration(days * 86_400)} more at the present rate" if days else ": passed"
        console.print(f"An uplift of {forecast['effect']:+.4f} would be seen after about "
                      f"{forecast['users_needed']:,.0f} users{left}.")
