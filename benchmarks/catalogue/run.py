"""Items that come after the fit: how soon they are in lists, how well they are ranked, what they cost.

    python -m benchmarks.catalogue.run [--quick] [--rate 10]

Amazon Beauty, stream time: the 325 items without training events are left out of the fit and come on the topic. Writes
benchmarks/results/catalogue.json and the table of docs/catalogue.md. `--quick`: a made-up world, without the encoder;
saves nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.catalogue.latency import cost, latency, publish
from benchmarks.catalogue.quality import LaterWorld, compare
from benchmarks.pages import fill
from models.data.dataset import Dataset
from models.data.loading import load_dataset
from models.evidence.item_knowledge import Parts
from models.language.sentences import SentenceEncoder, encoded
from schemas.files import write_whole
from schemas.settings import Settings, load

ROOT = Path(__file__).parents[2]
BEAUTY = ROOT / ".." / "shared" / "data" / "amazon-beauty"
PARTS = Parts(words=0.6, encoder=0.6)  # as in docs/results.md


def made_up(folder: Path) -> Dataset:
    """Return a data set of kinds of things, of which every tenth comes late."""
    rng = np.random.default_rng(0)
    kinds = ["soap", "scent", "brush", "comb", "towel", "sponge", "cream", "mask"]
    events = ["user_id,item_id,timestamp"]
    for user in range(120):
        kind, late = user % len(kinds), user >= 90
        for step, number in enumerate(rng.permutation(40)[:12].tolist()):
            if late or number % 10:
                events.append(f"{user},{kind * 40 + number},{1_600_000_000 + 10_000 * user + step}")
    (folder / "events.csv").write_text("\n".join(events) + "\n")
    (folder / "items.jsonl").write_text("".join(
        f'{{"item_id": "{row}", "title": "{kinds[row // 40]} number {row % 40}"}}\n' for row in range(320)))
    return load_dataset(folder, Settings().events)


def measure(settings: Settings, dataset: Dataset, parts: Parts, rate: float, rounds: int) -> dict[str, Any]:
    """Return all figures of a data set; without the part `encoder` nothing is encoded."""
    vectors = None
    if parts.encoder:
        vectors = encoded(SentenceEncoder.load(settings.items.encoder_name, "cpu"), dataset.texts,
                          settings.home / "cache" / "sentences")
    world = LaterWorld.of(dataset, vectors)
    base = world.fit(world.fitted, parts)
    with tempfile.TemporaryDirectory() as name:
        own = replace(settings, home=Path(name))
        artifact = publish(own.home, world, base, settings.items.encoder_name)
        return {"cost": cost(artifact, world, rounds, print), "latency": latency(own, artifact, world, rate, print),
                "quality": compare(world, base, parts, print)}


def page(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    soon, late = found["latency"]["new"], found["latency"]["withdrawn"]
    quality, costs = found["quality"], found["cost"]
    return "\n".join([
        "| | p50 | p99 |", "|---|--:|--:|",
        f"| a new item can be in a list for its text, {found['latency']['rate']:g}/s | {soon['p50']:.2f} s | "
        f"{soon['p99']:.2f} s |",
        f"| a withdrawn item is in none | {late['p50']:.2f} s | {late['p99']:.2f} s |", "",
        "| NDCG@10 of the closed form | unseen items | other items |", "|---|--:|--:|",
        f"| fitted without them, then put in | {quality['put']['unseen']:.4f} | {quality['put']['known']:.4f} |",
        f"| another fit, with them | {quality['refit']['unseen']:.4f} | {quality['refit']['known']:.4f} |", "",
        f"With {quality['items']} later items beside {quality['fitted']:,} a list takes {costs['ratio']:.2f} times as "
        f"long; memory grew by {costs['memory_mb']:.0f} MB, texts and encodings of the fit's items included."])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.catalogue.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a made-up world, without the encoder; saves nothing")
    parser.add_argument("--rate", type=float, default=10.0, help="items a second (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.quick:
        with tempfile.TemporaryDirectory() as name:
            print(page(measure(Settings(), made_up(Path(name)), Parts(words=0.6), 4 * args.rate, 5)))
        return
    if not BEAUTY.is_dir():
        print(f"skipping: {BEAUTY} does not exist")
        return
    settings = load()
    found = measure(settings, load_dataset(BEAUTY, settings.events), PARTS, args.rate, 60)
    write_whole(ROOT / "benchmarks" / "results" / "catalogue.json", json.dumps(found, indent=1).encode() + b"\n")
    fill(ROOT / "docs" / "catalogue.md", "catalogue", page(found))
    print("wrote benchmarks/results/catalogue.json and docs/catalogue.md")


if __name__ == "__main__":
    main()
