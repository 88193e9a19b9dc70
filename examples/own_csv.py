"""An offline study of your own CSV: what pays, and what each way of refreshing would have gained and cost.

Models are fitted on the first four fifths of the timeline; the fit says what each kind of knowledge adds. The rest is
played through the decisions and models of the live system, without a broker. `events.csv` has user_id, item_id,
timestamp; `items.jsonl` has item_id, title, attributes (other names are found, docs/events.md). Knowledge of users is
kept on, so that the replay has something to measure; `freshet fit` by itself switches it off where it does not pay.

    .venv/bin/python examples/own_csv.py --data my-shop
    .venv/bin/python examples/own_csv.py --data my-shop --policies never,nightly,freshet --budget 50
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from schemas.settings import load
from workers.replay.budget import KNOBS
from workers.replay.session import ReplaySession
from workers.terminal.stages import Stages
from workers.training import fit


def compared(rows: dict[str, dict[str, Any]]) -> Table:
    """Return the policies side by side."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("policy", "LLM calls", "per 1,000 events", "NDCG@10", "gain over behaviour, 95% interval"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for policy, f in rows.items():
        low, high = f["gain_interval"]
        table.add_row(policy, f"{f['calls']:,}", f"{f['calls_per_1000']:.1f}", f"{f['ndcg_at_10']:.4f}",
                      f"{f['gain']:+.4f} [{low:+.4f}, {high:+.4f}]")
    return table


def main() -> None:
    """Fit, replay each policy, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with events.csv and items.jsonl, or a file")
    parser.add_argument("--policies", default="never,once,freshet", help="see `freshet replay --help`")
    parser.add_argument("--budget", type=float, help="LLM calls per 1,000 events, for policies that can keep to one")
    parser.add_argument("--events", type=int, default=0, help="play at most so many events; 0 = all")
    arguments = parser.parse_args()

    settings = load()
    settings = replace(settings, fit=replace(settings.fit, parts="on"))
    console = Console(highlight=False)
    with Stages() as stages:
        fit.run(settings, arguments.data, stages)
        session = ReplaySession(settings, arguments.data, stages, arguments.events)
        rows = {}
        for policy in arguments.policies.split(","):
            budget = arguments.budget if policy == "freshet" or policy in KNOBS else None
            rows[policy] = session.run(policy, budget, seed=0).figures
    console.print(compared(rows))
    console.print("A gain whose interval holds 0 is not shown by this data. More events narrow it.")


if __name__ == "__main__":
    main()
