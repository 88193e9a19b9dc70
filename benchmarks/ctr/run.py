"""Does written knowledge help to predict what a user will like? KAR's task, on MovieLens-100K.

    python -m benchmarks.ctr.run [--quick] [--seeds 1,2,3]

A rating above 3 is "liked". Users are split 8:1:1 into training, validation and test. The first half of a user's events
(at most 30) is never predicted; the language model reads the newest eight liked items in it. DIN and DCNv2 run without
knowledge; with knowledge; with other users' and items' knowledge; with states of the catalogue's texts instead (for a
user, the mean over the items they liked); and without knowledge but twice as wide. Differences to "without" have 95%
intervals (bootstrap over users). Texts and finished runs are stored under FRESHET_HOME, so an interrupted benchmark can
be resumed. Writes benchmarks/results/ctr.json.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ctr.click_models import Ctr, Samples, fit_ctr, judge_ctr, samples, scores_ctr, written_events
from benchmarks.ctr.intervals import METRICS, ClickRun, compare
from models.compute.pca import Whitening
from models.data import dataset as data
from models.data.loading import load_dataset
from models.language.generation import generated
from models.language.llm import LanguageModel
from models.language.writer import Writer
from models.systems.kar.written import encode_texts, item_prompts, knowledge_states, user_prompts
from schemas.errors import FreshetError
from schemas.files import written_whole
from schemas.settings import Settings, load
from workers.data import movielens
from workers.terminal.stages import Stages
from workers.training.revision import revision

ROOT = Path(__file__).parents[2]
JSON_PATH = ROOT / "benchmarks" / "results" / "ctr.json"
KINDS = ("din", "dcnv2")
SHOWN = 8  # texts of each kind in the result file
PLAIN = "without"
WIDER = "without, wider"
VARIANTS = (PLAIN, "with knowledge", "shuffled knowledge", "catalogue texts", WIDER)
EPOCHS = 20
TOLD = 8  # liked films in a prompt; with 16 a text takes twice as long and is no more informative
FORMAT = 1  # of stored runs; a new number invalidates them


@dataclass(frozen=True, slots=True)
class Task:
    """The samples, and whitened states (zero rows = none) of users and items.

    Args:
        written: states of the texts that the language model wrote about users and about items.
        catalogue: states of the catalogue's texts: for users, the mean over liked items; for items, their own.
        examples: some of the written texts.
    """

    samples: Samples
    written: tuple[torch.Tensor, torch.Tensor]
    catalogue: tuple[torch.Tensor, torch.Tensor]
    examples: dict[str, list[str]]


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
    dataset = load_dataset(folder)
    order = np.argsort(dataset.events.user, kind="stable")
    rating, item = ratings(folder, dataset.events, dataset)[order], dataset.events.item[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(dataset.events.user, minlength=len(dataset.users)))])
    about = written_events(np.diff(offsets))
    histories = [
        item[low : low + n][rating[low : low + n] > 3].tolist() for low, n in zip(offsets[:-1], about, strict=True)]
    with stages.stage("language model", 600.0):
        llm = LanguageModel.load(settings.llm, settings.home / "cache")
    states, examples, folder = [], {}, settings.home / "cache" / "written"
    told = [row[-TOLD:] for row in histories]
    for name, prompts in (("users", user_prompts(told, dataset.texts)), ("items", item_prompts(dataset.texts))):
        with stages.stage(f"texts about {name}", 1800.0) as step:
            states.append(whitened(knowledge_states(llm, prompts, folder, step)))
            shown = [prompt for prompt in prompts if prompt][:: max(1, len(prompts) // SHOWN)][:SHOWN]
            examples[name] = [f"{prompt[-90:]} … {text}" for prompt, text in zip(
                shown, generated(llm, shown, folder), strict=True)]
    with stages.stage("catalogue texts", 1800.0):
        texts = whitened(encode_texts(Writer(llm), dataset.texts))
    tastes = [texts[history].mean(0) if history else torch.zeros(texts.shape[1]) for history in histories]
    return Task(samples(item, rating, offsets), (states[0], states[1]), (torch.stack(tastes), texts), examples)


def made_up() -> Task:
    """Return a synthetic task: users like items of a matching kind, which only the texts reveal."""
    rng = np.random.default_rng(0)
    users, items, each = 120, 80, 30
    taste, kind = torch.randn(users, 4), torch.randn(items, 4)
    item = rng.integers(0, items, users * each)
    like = (taste[np.repeat(np.arange(users), each)] * kind[item]).sum(1).numpy()
    rating = np.where(like + rng.normal(0, 0.5, len(item)) > 0, 5.0, 1.0)
    return Task(samples(item, rating, np.arange(users + 1) * each), (taste, kind), (taste, kind), {})


def run(task: Task, kind: str, variant: str, seed: int, epochs: int) -> tuple[dict[str, Any], ClickRun]:
    """Train and test one model on one split of the users."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(task.written[0]))
    tenth = max(1, len(order) // 10)
    test, validation, train = (
        task.samples.of_users(part) for part in (order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]))
    users, items = task.catalogue if variant == "catalogue texts" else task.written
    if variant == "shuffled knowledge":
        users, items = (part[rng.permutation(len(part))] for part in task.written)
    torch.manual_seed(seed)
    if variant in (PLAIN, WIDER):
        model = Ctr(len(items), kind, wider=2 if variant == WIDER else 1)
    else:
        model = Ctr(len(items), kind, users, items)
    best = fit_ctr(model, train, validation, epochs, seed)
    about = {"model": kind, "variant": variant, "seed": seed, "epoch": best["epoch"],
             "weights": sum(weight.numel() for weight in model.parameters())}
    return about | judge_ctr(model, test), ClickRun(test.user, scores_ctr(model, test), test.label)


def kept(folder: Path, task: Task, kind: str, variant: str, seed: int) -> tuple[dict[str, Any], ClickRun]:
    """Return the stored result of the same run; if there is none, run and store it."""
    digest = hashlib.sha256(f"{FORMAT}|{EPOCHS}|{kind}|{variant}|{seed}".encode())
    for part in (task.samples.item, task.samples.label, *task.written, *task.catalogue):
        digest.update(np.ascontiguousarray(part).tobytes())
    path = folder / f"ctr-{digest.hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            return json.loads(str(stored["about"])), ClickRun(stored["user"], stored["score"], stored["label"])
    about, outcome = run(task, kind, variant, seed, EPOCHS)
    with written_whole(path) as scratch, scratch.open("wb") as file:
        np.savez(file, about=json.dumps(about), user=outcome.user, score=outcome.score, label=outcome.label)
    return about, outcome


def table(runs: list[dict[str, Any]], differences: list[dict[str, Any]]) -> str:
    lines = ["| model | knowledge | AUC | LogLoss | AUC over without, 95% | LogLoss over without, 95% |",
             "|---|---|--:|--:|--:|--:|"]
    for kind in KINDS:
        for variant in VARIANTS:
            cells = []
            for metric in METRICS:
                values = [run[metric] for run in runs if (run["model"], run["variant"]) == (kind, variant)]
                sd = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.4f} ± {sd:.4f}")
            for metric in METRICS:
                matching = [row for row in differences
                            if (row["model"], row["variant"], row["metric"]) == (kind, variant, metric)]
                cells.append("{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**matching[0]) if matching else "–")
            lines.append(f"| {kind} | {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.ctr.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="synthetic users and texts, takes seconds, saves nothing")
    parser.add_argument("--seeds", default="1,2,3", help="seeds of user splits and weights (%(default)s)")
    args = parser.parse_args(argv)
    settings = load()
    try:
        with Stages() as stages:
            task = made_up() if args.quick else movielens_task(settings, stages)
            plan = [(kind, variant, int(seed)) for seed in args.seeds.split(",") for kind in KINDS
                    for variant in VARIANTS]
            runs, tested = [], {}
            with stages.stage("training", 1800.0) as step:
                for at, (kind, variant, seed) in enumerate(plan):
                    about, tested[kind, variant, seed] = (
                        run(task, kind, variant, seed, 12) if args.quick
                        else kept(settings.home / "evaluations", task, kind, variant, seed))
                    runs.append(about)
                    step(at + 1, len(plan), f"{kind}, {variant}: AUC {about['auc']:.4f}")
    except FreshetError as error:
        sys.exit(f"benchmarks.ctr.run: {error}")
    seeds = sorted({seed for *_, seed in tested})
    differences: list[dict[str, Any]] = [
        {"model": kind, "variant": variant, **row}
        for kind in KINDS for variant in VARIANTS if variant != PLAIN
        for row in compare([tested[kind, variant, seed] for seed in seeds],
                             [tested[kind, PLAIN, seed] for seed in seeds], len(task.written[0]))]
    print(f"\n{table(runs, differences)}")
    if not args.quick:
        JSON_PATH.write_text(json.dumps(
            {"revision": revision(), "llm": settings.llm.name, "runs": runs, "differences": differences,
             "examples": task.examples}, indent=1) + "\n")
        print(f"\nwrote {JSON_PATH.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
