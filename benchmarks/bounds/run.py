"""Bounds on the harm of knowledge: ranking quality against harmed users, for four shapes of the bound.

    python -m benchmarks.bounds.run [--quick] [--data DIR] [--protocol leave-one-out] [--seed 1]

The same reference and fused scores (item texts and evidence without user vectors, so no language model runs per event)
are combined in four ways: within the trust region (`models.trust.region`), with a bound on every item, with a bound on
the average (KL(p ‖ p_ref) ≤ ε, solved exactly), and by mixing probabilities. A user is harmed if they lose more than
0.1 nats. Writes benchmarks/results/bounds.json and docs/bounds.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.quality.run import ROOT, TUNED, made_up
from models.calibration.fused import calibrate_scores
from models.data.loading import load_dataset
from models.evidence.ease import Ease
from models.measuring.harm import harmed
from models.measuring.metrics import ndcg
from models.measuring.outcomes import mean_by_user
from models.measuring.protocols import Split, protocol
from models.scorers.fusion import FusedScorer
from models.scorers.ranks import hidden_before, target_ranks
from models.scorers.snapshots import before
from models.systems.context import Context
from models.trust.region import bounded, trust_region
from schemas.errors import FreshetError
from schemas.settings import FitSettings, Settings, load
from workers.data import movielens
from workers.terminal.stages import Stages, TrainingStages
from workers.training.language import open_language
from workers.training.revision import revision
from workers.training.scorer_cache import ScorerCache

JSON_PATH = ROOT / "benchmarks" / "results" / "bounds.json"
Shape = Callable[[Tensor, Tensor, float], Tensor]
RADII = {"trust region": (0.05, 0.1, 0.13, 0.2, 0.3, 0.5), "every item": (0.05, 0.1, 0.2, 0.4, 0.8),
         "average (KL)": (0.003, 0.01, 0.02, 0.04, 0.1, 0.4), "mixture": (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)}


def every_item(ref: Tensor, fused: Tensor, radius: float) -> Tensor:
    """Return log p: no item loses more than `radius` nats."""
    return bounded(ref, fused, torch.full((len(ref),), radius, dtype=torch.float64), torch.zeros(len(ref)))[0]


def within_region(ref: Tensor, fused: Tensor, radius: float) -> Tensor:
    """Return log p as served by ranking: every item is bounded except those in the region's exception set."""
    return trust_region(ref, fused, torch.full((len(ref),), radius, dtype=torch.float64))[0]


def average(ref: Tensor, fused: Tensor, radius: float) -> Tensor:
    """Return log p ∝ log p_ref + β (log p_fused − log p_ref), with KL(p ‖ p_ref) = `radius`, or β = 1 if it is less."""
    ref, change = ref.double(), (fused - ref).double()
    low, high = torch.zeros(len(ref), 1, dtype=torch.float64), torch.ones(len(ref), 1, dtype=torch.float64)
    for step in range(50):
        middle = high if step == 0 else (low + high) / 2
        logp = (ref + middle * change).log_softmax(-1)
        within = (logp.exp() * (logp - ref)).sum(-1, keepdim=True) <= radius
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    return (ref + low * change).log_softmax(-1)


def mixture(ref: Tensor, fused: Tensor, radius: float) -> Tensor:
    """Return log((1 − w) p_ref + w p_fused) with 1 − w = e^−radius: no item loses more than `radius` nats."""
    return torch.logaddexp(ref.double() - radius, fused.double() + np.log(-np.expm1(-radius)))


SHAPES: dict[str, Shape] = {
    "trust region": within_region, "every item": every_item, "average (KL)": average, "mixture": mixture}


def points(context: Context, split: Split) -> Iterator[dict[str, Any]]:
    """Yield NDCG@10 and harmed users for the reference, the fused scores and every shape at every radius."""
    behaviour, scorer = context.reference(), context.backbone("sasrec+text")[0]
    assert isinstance(scorer, FusedScorer)
    fold, seed, known = split.fold, context.settings.fit.seed, context.known()
    weights = calibrate_scores(
        fold, known, behaviour.backbone, scorer, seed=seed, use="on", once=context.once).with_vectors
    behaviour, fused, affinity = context.served_reference(), context.served(scorer, "with texts"), weights.affinity
    assert isinstance(fused, FusedScorer)
    weights.put(fused)
    if split.extends:
        affinity = replace(Ease.fit(fold.sequences, fold.n_items, known, affinity.parts), half_life=affinity.half_life)
    reference = behaviour.backbone
    rows, by_behaviour = hidden_before(reference, split.test, split.begin, rows=split.rows())
    hidden = hidden_before(fused, split.test, split.begin, rows=split.rows())[1]
    sides = reference.item_side(), fused.item_side()

    def scored(shape: Shape | None, radius: float) -> Callable[[Tensor], Tensor]:
        def scores(part: Tensor) -> Tensor:
            given = reference.scores(by_behaviour[part], sides[0])
            histories = before(split.test, rows[part.numpy()], fused.max_len)
            ref = behaviour.weigh(given, histories)
            if radius == 0:
                return ref
            combined = fused.weigh(
                fused.scores(hidden[part], sides[1]), given, affinity.evidence(histories), torch.zeros(len(part)))
            return combined if shape is None else shape(ref.log_softmax(-1), combined.log_softmax(-1), radius)

        return scores

    cases: list[tuple[str, float, Shape | None]] = [("reference", 0.0, None), ("unbounded", np.inf, None)]
    cases += [(name, radius, SHAPES[name]) for name, radii in RADII.items() for radius in radii]
    progress = context.during("bounds")
    reference_logp = np.zeros(0)
    for done, (name, radius, shape) in enumerate(cases, 1):
        rank, logp = target_ranks(scored(shape, radius), fold.n_items, split.test, rows)
        reference_logp = logp if name == "reference" else reference_logp
        losses = reference_logp - logp
        users = mean_by_user(split.user(rows), losses)
        yield {"bound": name, "radius": None if np.isinf(radius) else radius, "ndcg_at_10": float(ndcg(rank).mean()),
               "harmed_users": float(harmed(users).mean()),
               "log_likelihood_gain": float((logp - reference_logp).mean()), "largest_loss": float(losses.max())}
        progress(done, len(cases), {})


def table(rows: list[dict[str, Any]]) -> str:
    """Return the points as a Markdown table."""
    lines = ["| bound | radius, nats | NDCG@10 | harmed users | largest loss of an event | log-likelihood gained |",
             "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        radius = "–" if not row["radius"] else f"{row['radius']:g}"
        lines.append(f"| {row['bound']} | {radius} | {row['ndcg_at_10']:.4f} | {row['harmed_users']:.1%} | "
                     f"{row['largest_loss']:.2f} | {row['log_likelihood_gain']:+.3f} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw harmed users against NDCG@10, a line per bound."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for name in SHAPES:
        line = [row for row in rows if row["bound"] in {"reference", name}]
        axis.plot([100 * row["harmed_users"] for row in line], [row["ndcg_at_10"] for row in line], "o-", label=name)
    for name, marker in (("reference", "ks"), ("unbounded", "k^")):
        row = next(row for row in rows if row["bound"] == name)
        axis.plot(100 * row["harmed_users"], row["ndcg_at_10"], marker, label=name)
    axis.set(xlabel="users who lose more than 0.1 nats, %", ylabel="NDCG@10", title=title)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "bounds"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.bounds.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="synthetic data, takes seconds, saves nothing")
    parser.add_argument("--data", type=Path,
                        help="folder with events.csv and items.jsonl (MovieLens-100K; its dropout and epochs are used)")
    parser.add_argument("--protocol", choices=("leave-one-out", "stream-time"), default="leave-one-out",
                        help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    args = parser.parse_args(argv)
    try:
        with ExitStack() as opened, Stages() as stages:
            settings = load()
            if args.quick:
                folder = made_up(Path(opened.enter_context(TemporaryDirectory())))
                settings = replace(Settings(), home=folder, fit=FitSettings(dim=16, layers=1, epochs=8))
            else:
                folder = args.data or movielens.fetch(settings.home)
                settings = replace(settings, fit=replace(settings.fit, **TUNED["movielens-100k"], seed=args.seed))
            dataset = load_dataset(folder)
            split = protocol(args.protocol.replace("-", "_"), dataset, limit=4000)
            context = Context(dataset, split, settings, lambda: open_language(settings, dataset.texts, stages),
                            report=TrainingStages(stages, opened.enter_context(ExitStack())),
                            keep=ScorerCache(settings.home / "cache" / "scorers"))
            if args.quick:  # synthetic texts carry no information, so random vectors suffice
                context.once("texts", lambda: torch.randn(len(dataset.items), 8))
            rows = list(points(context, split))
    except FreshetError as error:
        sys.exit(f"benchmarks.bounds.run: {error}")
    print(table(rows))
    if not args.quick:
        JSON_PATH.write_text(json.dumps(
            {"data_hash": dataset.hash, "protocol": args.protocol, "seed": args.seed, "revision": revision(),
             "points": rows}, indent=1) + "\n")
        draw(rows, ROOT / "docs" / "bounds.svg", f"{folder.name}, {args.protocol}, seed {args.seed}")
        print("\nwrote benchmarks/results/bounds.json and docs/bounds.svg")


if __name__ == "__main__":
    main()
