"""The price of a refresh in a simulation: a load peak, a slow GPU, a failed GPU, and several budgets.

    python -m benchmarks.price.run [--quick]

Prints two tables; a full run also writes benchmarks/results/price.json and docs/price.svg. docs/price.md explains them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np

from benchmarks.ingest.systems import ROOT
from benchmarks.price.storm import Scenario, Simulation, Story
from streams.decisions.price import QUEUE_LIMIT

STORM, END = 400, 900
TROUBLES = [
    Scenario("storm", "all users change their theme", storm_at=STORM),
    Scenario("slow", "… and the GPU is 10 × slower for 200 s", storm_at=STORM, trouble=(STORM, STORM + 200),
             speed_in_trouble=0.2),
    Scenario("dead", "… and the GPU fails for 200 s", storm_at=STORM, trouble=(STORM, STORM + 200),
             speed_in_trouble=0.0)]
# Users join over time and change their theme once in 150 events; the worker is fast.
STEADY = Scenario("budget", "", arriving=True, users=200, events_per_s=60.0, duration=500, speed=1000.0,
                  speed_in_trouble=1000.0, changes=1 / 150)
BUDGETS = (5.0, 10.0, 20.0, 50.0)
EVERY = (1000, 200, 70, 23)  # `every-n` with about as many calls


def smaller(scenario: Scenario) -> Scenario:
    """Return a quick variant: a tenth of the users, events and speed."""
    return replace(scenario, users=scenario.users // 10, events_per_s=scenario.events_per_s / 10,
                   speed=scenario.speed / 10, speed_in_trouble=scenario.speed_in_trouble / 10)


def troubles(scenarios: list[Scenario], seed: int) -> list[dict]:
    """Run each scenario with and without the price; return a row each."""
    rows = []
    for scenario in scenarios:
        for priced in (True, False):
            simulation = Simulation(scenario, priced=priced, seed=seed)
            targets: list[float] = []
            story = simulation.run(lambda second, at, targets=targets: targets.append(
                at.planner.market.target if at.planner.market is not None else 0.0))
            after = story.queue[scenario.storm_at:]
            rows.append({
                "scenario": scenario.name, "priced": priced, "queue_most": max(after),
                "queue_bound": round(QUEUE_LIMIT * max(targets[scenario.storm_at:])) if priced else scenario.users,
                "price_most": round(max(story.price[scenario.storm_at:]), 3), "price_end": round(story.price[-1], 3),
                "wait_most": story.longest_wait, "patience": simulation.planner.limits.patience,
                "wrong_end": round(story.wrong[-1], 4), "calls": story.calls, "events": story.events,
                "right_again_s": right_again(story, scenario), "superseded": story.superseded,
                "margin_after": round(float(np.mean(story.margin[scenario.storm_at:])), 4),
                "queue": story.queue, "price": [round(p, 4) for p in story.price],
                "wrong": [round(w, 4) for w in story.wrong]})
    return rows


def right_again(story: Story, scenario: Scenario) -> int:
    """Return the seconds from the storm until 95% of users have knowledge of their theme; −1 = not by the end."""
    after = np.array(story.wrong[scenario.storm_at:]) <= 0.05
    return int(np.argmax(after)) if after.any() else -1


def budgets(scenario: Scenario, seed: int) -> list[dict]:
    """Run budgets under `freshet`, and `every-n` at about as many calls; return a row each."""
    rows = []
    for budget, every in zip(BUDGETS, EVERY, strict=True):
        for case in (replace(scenario, calls_per_1000=budget), replace(scenario, policy="every-n", every=every)):
            simulation = Simulation(case, seed=seed)
            story = simulation.run()
            market = simulation.planner.market
            rows.append({
                "policy": case.policy if market is not None else f"every-{case.every}",
                "budget": budget if market is not None else None, "events": story.events,
                "calls_per_1000": round(1000 * len(story.requests) / story.events, 2),
                "forced": market.forced if market is not None else 0,
                "wait_most": story.longest_wait,
                "patience": simulation.planner.limits.patience if market is not None else None,
                "margin": round(float(np.sum(story.margin) / len(story.margin)), 4),
                "wrong": round(float(np.mean(story.wrong)), 4)})
    return rows


def plot(rows: list[dict], scenarios: list[Scenario]) -> None:
    """Draw the queue, the price and the share of users with wrong knowledge over time in docs/price.svg."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "freshet"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, len(scenarios), figsize=(11, 6.5), sharex=True, sharey="row")
    panels = (("queue", "requests waiting"), ("price", "price μ, B per event"), ("wrong", "users with wrong knowledge"))
    for column, scenario in enumerate(scenarios):
        for row in rows:
            if row["scenario"] != scenario.name:
                continue
            look = {"color": "tab:blue", "label": "with the price"} if row["priced"] else {
                "color": "tab:orange", "label": "without a price", "linestyle": "--"}
            for place, (key, _) in enumerate(panels):
                if row["priced"] or key != "price":
                    axes[place][column].plot(row[key], linewidth=1.2, **look)
        for axis in axes[:, column]:
            axis.axvline(scenario.storm_at, color="grey", linewidth=0.8, linestyle=":")
            if scenario.trouble[1]:
                axis.axvspan(*scenario.trouble, color="tab:red", alpha=0.08)
            axis.grid(alpha=0.3)
        axes[0][column].set_title(scenario.title, fontsize=10)
        axes[2][column].set_xlabel("seconds")
    for place, (_, label) in enumerate(panels):
        axes[place][0].set_ylabel(label)
        axes[place][0].set_ylim(bottom=0)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "price.svg", metadata={"Date": None})


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Return rows as a Markdown table; columns: key → heading."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join("–" if row[key] is None else str(row[key]) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.price.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the users, takes seconds, writes nothing")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation (%(default)s)")
    args = parser.parse_args()
    scenarios = [replace(scenario, duration=END) for scenario in TROUBLES]
    steady = STEADY
    if args.quick:
        scenarios = [smaller(scenario) for scenario in scenarios]
        steady = replace(STEADY, users=20, events_per_s=6.0)
    print("simulating trouble …", flush=True)
    trouble = troubles(scenarios, args.seed)
    print(table(trouble, {
        "scenario": "scenario", "priced": "price", "queue_most": "longest queue", "queue_bound": "its bound",
        "price_most": "highest price", "price_end": "price at the end", "wait_most": "longest wait, own events",
        "right_again_s": "s until 95% right", "calls": "calls", "superseded": "superseded"}))
    print("\nsimulating budgets …", flush=True)
    spent = budgets(steady, args.seed)
    print(table(spent, {
        "policy": "policy", "budget": "budget", "calls_per_1000": "calls per 1,000", "forced": "forced",
        "wait_most": "longest wait", "patience": "its bound", "margin": "mean margin, nats", "wrong": "wrong share"}))
    if not args.quick:
        out = ROOT / "benchmarks" / "results" / "price.json"
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps({"seed": args.seed, "trouble": trouble, "budgets": spent}) + "\n")
        plot(trouble, scenarios)
        print(f"\nwrote {out.relative_to(ROOT)} and docs/price.svg")


if __name__ == "__main__":
    main()
