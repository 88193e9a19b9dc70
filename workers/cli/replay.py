"""`freshet replay`: what would a refresh policy have been worth on recorded events, and what would it have cost?"""

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
    from workers.replay.scene import ReplayResult


def replay(
    data: Annotated[Path | None, typer.Option(
        help="Folder with events.csv and items.jsonl that the current model was fitted on; without it MovieLens-100K.",
    )] = None,
    policy: Annotated[PolicyName, typer.Option(help="When knowledge is generated anew; see below.")] = "freshet",
    budget: Annotated[float | None, typer.Option(
        help="LLM calls per 1,000 events. freshet keeps to it by its price; for nightly, every-n, drift and judge the "
             "period, the number, the threshold or the level is set so that their calls meet it. Without it: as the "
             "settings say.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    events: Annotated[int, typer.Option(help="Events to play, from the split on; 0 = all.")] = 0,
    stock: Annotated[bool, typer.Option(
        "--stock", help="Users of the past have knowledge when they come back, as an offline run at the split would "
                        "have left it; the policy does not pay for that. Without it all start with none.")] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap interval.")] = 0,
) -> None:
    """Play recorded events through the live system's decisions and models, without a broker.

    Events that the current model (`freshet fit`, `freshet models`) was not fitted on are played in order of event time.
    Each is predicted from what had been recommended to its user before it came, then learned from. Knowledge is there
    the moment it is asked for, so this shows what a policy is worth, not what waiting costs; `freshet demo` shows that.
    The same command gives the same figures.

    Policies: `never`; `once` (at the first chance); `nightly` (everyone with new events, at the end of each period);
    `every-n` (events of a user); `always`; `drift` alone; `judge` alone; `freshet` (all reasons, at a price).

    With FRESHET_RANKING_EVIDENCE=stored ranking does not bring up to date what a history says about items: it is as it
    was when knowledge was generated.

    What the language model said is kept in FRESHET_HOME/cache/replay: the first replay of a policy pays for it, later
    ones count the same calls at no cost.

    Examples:

    `freshet replay --policy freshet --budget 50`

    `freshet replay --data my-shop --policy nightly --json nightly.json`
    """
    from workers.data import movielens
    from workers.replay.scene import Scene
    from workers.terminal.stages import Stages

    settings = load()
    if events < 0:
        raise FreshetError("--events is at least 0")
    folder = data or movielens.fetch(settings.home, typer.echo)
    with Stages() as stages:
        outcome = Scene(settings, folder, stages, events, stock=stock).run(policy, budget, seed)
    _show(outcome)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_bytes(as_json(outcome))
        typer.echo(f"figures in {json}")


def as_json(outcome: ReplayResult) -> bytes:
    """Return the figures as JSON: equal bytes for equal replays. How long it took is not in it."""
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
        ("NDCG@10", f"{f['ndcg_at_10']:.4f}, by behaviour alone {f['reference_ndcg_at_10']:.4f}"),
        ("gain", f"{f['gain']:+.4f}, 95% interval {low:+.4f} to {high:+.4f}"),
        ("Recall@10", f"{f['recall_at_10']:.4f}, by behaviour alone {f['reference_recall_at_10']:.4f}"),
        ("knowledge at use", _age(f["median_age_s"], f["median_age_events"])),
        ("store", f"{f['store_bytes_per_user']:,.0f} bytes per user with knowledge; "
                  f"state {f['state_bytes_per_user']:,.0f} per user"),
        ("replay took", f"{outcome.wall_s:.1f} s, {f['events'] / max(outcome.wall_s, 1e-9):,.0f} events/s")]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _age(seconds: float | None, events: float | None) -> str:
    if seconds is None or events is None:
        return "none was used"
    return f"median age {duration(seconds)}, {events:g} events"
