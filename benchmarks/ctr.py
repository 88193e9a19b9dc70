"""Does what a language model writes help to tell what a user will like? KAR's own task, on MovieLens-100K.

    python -m benchmarks.ctr [--quick] [--seeds 1,2,3]

Rating above 3 = liked. Users are split 8:1:1 into training, validation and test; the first half of a user's events (30
at most) is read by the language model and never asked about. DIN and DCNv2, without knowledge, with it, and with other
users' and items' texts. Texts are kept on disk, so an interrupted run goes on. Writes benchmarks/results/ctr.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import dataset as data
from models.ctr import Ctr, Samples, fit_ctr, judge_ctr, samples, written_events
from models.kar import item_prompts, knowledge_states, user_prompts
from models.llm import LanguageModel
from models.sources import Whitening
from schemas.errors import FreshetError
from schemas.settings import Settings, load
from workers import movielens
from workers.demo.report import revision
from workers.stages import Stages

ROOT = Path(__file__).parents[1]
JSON_PATH = ROOT / "benchmarks" / "results" / "ctr.json"
KINDS = ("din", "dcnv2")
VARIANTS = ("without", "with knowledge", "shuffled knowledge")


@dataclass(frozen=True, slots=True)
class Task:
    """The questions, and states of what was written about users and items (zero rows = nothing)."""

    questions: Samples
    users: torch.Tensor
    items: torch.Tensor


def whitened(states: torch.Tensor) -> torch.Tensor:
    return Whitening(states)(states) * (states != 0).any(1, keepdim=True)


def ratings(folder: Path, events: data.Events, dataset: data.Dataset) -> np.ndarray:
    """Return the rating of every event, in the order of `events`."""
    with (folder / "events.csv").open(newline="") as file:
        by = {(row["user_id"], row["item_id"]): float(row["rating"]) for row in csv.DictReader(file)}
    return np.array([by[dataset.users[user], dataset.items[item]]
                     for user, item in zip(events.user.tolist(), events.item.tolist(), strict=True)])


def movielens_task(settings: Settings, stages: Stages) -> Task:
    folder = movielens.fetch(settings.home)
    dataset = data.load(folder)
    order = np.argsort(dataset.events.user, kind="stable")
    rating, item = ratings(folder, dataset.events, dataset)[order], dataset.events.item[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(dataset.events.user, minlength=len(dataset.users)))])
    about = written_events(np.diff(offsets))
    histories = [
        item[low : low + n][rating[low : low + n] > 3].tolist() for low, n in zip(offsets[:-1], about, strict=True)]
    with stages.stage("language model", 600.0):
        llm = LanguageModel.load(settings.llm, settings.home / "cache")
    states = []
    for name, prompts in (("texts about users", user_prompts(histories, dataset.texts)),
                          ("texts about items", item_prompts(dataset.texts))):
        with stages.stage(name, 1800.0) as step:
            states.append(knowledge_states(llm, prompts, settings.home / "cache" / "written", step))
    return Task(samples(item, rating, offsets), *(whitened(part) for part in states))


def made_up() -> Task:
    """Return users who like what is of their kind, which only the texts say."""
    rng = np.random.default_rng(0)
    users, items, each = 120, 80, 30
    taste, kind = torch.randn(users, 4), torch.randn(items, 4)
    item = rng.integers(0, items, users * each)
    like = (taste[np.repeat(np.arange(users), each)] * kind[item]).sum(1).numpy()
    rating = np.where(like + rng.normal(0, 0.5, len(item)) > 0, 5.0, 1.0)
    return Task(samples(item, rating, np.arange(users + 1) * each), taste, kind)


def run(task: Task, kind: str, variant: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train and test one model on one split of the users."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(task.users))
    tenth = max(1, len(order) // 10)
    test, held, train = (
        task.questions.of_users(part) for part in (order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]))
    known: list[torch.Tensor | None] = [None, None]
    if variant != "without":
        known = [task.users, task.items]
    if variant == "shuffled knowledge":
        known = [part[rng.permutation(len(part))] for part in (task.users, task.items)]
    torch.manual_seed(seed)
    model = Ctr(len(task.items), kind, *known)
    found = fit_ctr(model, train, held, epochs, seed)
    return {"model": kind, "variant": variant, "seed": seed, "epoch": found["epoch"]} | judge_ctr(model, test)


def table(runs: list[dict[str, Any]]) -> str:
    lines = ["| model | knowledge | AUC | LogLoss |", "|---|---|--:|--:|"]
    for kind in KINDS:
        for variant in VARIANTS:
            group = [one for one in runs if (one["model"], one["variant"]) == (kind, variant)]
            figures = []
            for metric in ("auc", "logloss"):
                values = [one[metric] for one in group]
                sd = statistics.stdev(values) if len(values) > 1 else 0.0
                figures.append(f"{statistics.mean(values):.4f} ± {sd:.4f}")
            lines.append(f"| {kind} | {variant} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.ctr", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="made-up users and texts, seconds, nothing saved")
    parser.add_argument("--seeds", default="1,2,3", help="of user splits and weights (%(default)s)")
    args = parser.parse_args(argv)
    settings = load()
    try:
        with Stages() as stages:
            task = made_up() if args.quick else movielens_task(settings, stages)
            plan = [(kind, variant, int(seed)) for seed in args.seeds.split(",") for kind in KINDS
                    for variant in VARIANTS]
            runs = []
            with stages.stage("training", 1800.0) as step:
                for at, (kind, variant, seed) in enumerate(plan):
                    runs.append(run(task, kind, variant, seed, 12 if args.quick else 20))
                    step(at + 1, len(plan), f"{kind}, {variant}: AUC {runs[-1]['auc']:.4f}")
    except FreshetError as error:
        sys.exit(f"benchmarks.ctr: {error}")
    print(f"\n{table(runs)}")
    if not args.quick:
        JSON_PATH.write_text(json.dumps(
            {"revision": revision(), "llm": settings.llm.name, "runs": runs}, indent=1) + "\n")
        print(f"\nwritten: {JSON_PATH.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
