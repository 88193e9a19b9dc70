"""`freshet replay`: measures the quality and cost of a refresh policy on recorded events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from schemas.errors import FreshetError
from schemas.settings import load
from streams.decisions.policies import PolicyName
from workers.terminal.durations import duration

if TYPE_CHECKING:
    from workers.replay.session import ReplayResult


def replay(
    data: Annotated[Path | None, typer.Option(
        help="Folder with the events.csv and items.jsonl that the current model was fitted on. [default: "
             "MovieLens-100K]",
    )] = None,
    policy: Annotated[PolicyName, typer.Option(help="When to refresh knowledge; see the list above.")] = "freshet",
    budget: Annotated[float | None, typer.Option(
        help="LLM calls per 1,000 events. freshet keeps to the budget by itself. For nightly, every-n, drift and judge "
             "the replay searches for the period, number, threshold or level that meets it. [default: use the "
             "settings]")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    events: Annotated[int, typer.Option(help="Number of events to play after the training part. 0 = all.")] = 0,
    stock: Annotated[bool, typer.Option(
        "--stock", help="Start with knowledge for all users of the training part, as if an offline run had generated "
                        "it at the split. These LLM calls are not charged to the policy. Without this option all users "
                        "start without knowledge.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed for the bootstrap interval.")] = 0,
) -> None:
    """Play recorded events through the live system's decisions and models, without a broker.

    The events that the current model was not fitted on are played in order of event time. Each is first predicted from
    the user's last recommendation and then added to the user's state. Knowledge is available as soon as it is
    requested, so a replay measures what a policy is worth, not what latency costs; `freshet demo` measures latency. The
    same command always gives the same figures.

    Policies: `never`; `once` (as soon as the history is long enough); `nightly` (all users with new events, at the end
    of each period); `every-n` (after every n events of a user); `always` (after every event); `drift` (only on drift);
    `judge` (only on contradiction); `freshet` (all reasons, limited by a price).

    With FRESHET_RANKING_EVIDENCE=stored, ranking uses the item evidence as it was when the knowledge was generated. By
    default it recomputes the evidence from the current history.

    Generated knowledge is cached in FRESHET_HOME/cache/replay. The first replay of a policy runs the language model;
    later replays count the same calls but read the cache.

    Examples:

    `freshet replay --policy freshet --budget 50`

    `freshet replay --data my-shop --policy nightly --json nightly.json`
    """
    from workers.data import movielens
    from workers.replay.session import ReplaySession
    from workers.terminal.stages import Stages

    settings = load()
    if events < 0:
        raise FreshetError("--events must not be negative")
    folder = data or movielens.fetch(settings.home, typer.echo)
    with Stages() as stages:
        outcome = ReplaySession(settings, folder, stages, events, stock=stock).run(policy, budget, seed)
    _show(outcome)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_bytes(as_json(outcome))
        typer.echo(f"wrote the figures to {json}")


def as_json(outcome: ReplayResult) -> bytes:
    """Return the figures as JSON: equal replays give equal bytes. The run time is not included."""
    return orjson.dumps(outcome.figures, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


def _show(outcome: ReplayResult) -> None:
    f = outcome.figures
    low, high = f["gain_interval"]
    reasons = ", ".join(f"{name} {count:,}" for name, count in f["refreshes"].items()) or "none"
    setting = ", ".join(f"{name} = {value:g}" for name, value in f["setting"].items() if value is not None)
    rows: list[tuple[str, Any]] = [
        ("policy", f["policy"] + (f" ({setting})" if setting else "")),
        ("evidence", f["evidence"]),
        ("events", f"{f['events']:,} played, {f['predicted']:,} predicted, {f['with_knowledge']:,} with knowledge"),
        ("LLM calls", f"{f['calls']:,}, {f['calls_per_1000']:.1f} per 1,000 events ({f['llm_seconds']:.1f} s)"
                      + (f"; {f['stocked']:,} before" if f["stock"] else "")),
        ("refreshes", reasons),
        ("NDCG@10", f"{f['ndcg_at_10']:.4f}, behaviour alone {f['reference_ndcg_at_10']:.4f}"),
        ("gain", f"{f['gain']:+.4f}, 95% interval {low:+.4f} to {high:+.4f}"),
        ("Recall@10", f"{f['recall_at_10']:.4f}, behaviour alone {f['reference_recall_at_10']:.4f}"),
        ("knowledge when used", _age(f["median_age_s"], f["median_age_events"])),
        ("store", f"{f['store_bytes_per_user']:,.0f} bytes per user with knowledge; "
                  f"state {f['state_bytes_per_user']:,.0f} per user"),
        ("replay took", f"{outcome.wall_s:.1f} s, {f['events'] / max(outcome.wall_s, 1e-9):,.0f} events/s")]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _age(seconds: float | None, events: float | None) -> str:
    if seconds is None or events is None:
        return "no knowledge was used"
    return f"median age {duration(seconds)}, {events:g} events"
