"""The pictures of docs/concepts.md, drawn by the functions that decide in production on small examples.

    python -m benchmarks.concepts.run [--out docs]

Each example has a fixed seed, so the files are the same every time. *What pays* is drawn from the ranks that
`make bench-quality` stored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import numpy as np
import torch
from matplotlib import pyplot as plt

from benchmarks.price.storm import Scenario, Simulation
from benchmarks.quality.ranks import Difference, RankBook
from models.trust.region import trust_region
from streams.detection.drift import Detector, DriftColumns, update_user
from streams.detection.trust import judge

ROOT = Path(__file__).parents[2]
GREEN, RED, BLUE, GREY = "#0b6e4f", "#d1495b", "#30638e", "#7d8590"
ALPHA = 0.05
DETECTOR = Detector(mean=0.5, sd=0.2, prior=10.0, slack=0.5, threshold=5.0)
REFERENCE = ("dense+evidence", None)
PARTS = {"words": "words of titles", "encoder": "words and sentence encoder", "written": "written keywords"}
DATA = {"amazon-beauty": "Amazon Beauty", "movielens-100k": "MovieLens-100K"}


def drift_story() -> dict[str, Any]:
    """Return the distances of a user whose interest changes at event 30, the statistic, and where it alarms."""
    rng = np.random.default_rng(3)
    distance = np.clip(np.concatenate([rng.normal(0.45, 0.15, 30), rng.normal(0.85, 0.15, 30)]), 0, 2)
    columns, path, refreshed = DriftColumns.zeros(1), [], []
    for at in range(len(distance)):
        if refreshed:  # the anchor is the new interest: what was far is near
            distance[at] = max(0.0, distance[at] - 0.4)
        update_user(columns, 0, [float(distance[at])], DETECTOR)
        path.append(float(columns.cusum[0]))
        if columns.drifted[0]:
            refreshed.append(at)
            columns = DriftColumns.zeros(1)
    return {"distance": distance, "cusum": path, "refreshed": refreshed, "changed": 30}


def judge_story(mean: float, events: int = 60) -> dict[str, Any]:
    """Return log-wealth and trust after each event of a user whose knowledge has margins of this mean (B = 1)."""
    rng = np.random.default_rng(5)
    margins = np.clip(rng.normal(mean, 0.5, events), -1, 1)
    harm: list[float] = []
    wealth, trust, crossed = [], [], None
    for at, margin in enumerate(margins):
        verdict = judge(harm, [], 1.0, [float(margin)], 1.0, ALPHA)
        harm = verdict.harm
        top = max(harm)
        wealth.append(top + float(np.log(np.mean(np.exp(np.array(harm) - top)))))
        trust.append(verdict.trust)
        if verdict.contradicted is not None:
            crossed = at
            break
    return {"wealth": wealth, "trust": trust, "crossed": crossed}


def region_story(radius: float) -> dict[str, Any]:
    """Return the reference, the fused and the served probabilities of twelve items, and 1/μ."""
    rng = np.random.default_rng(8)
    reference = torch.tensor(np.sort(rng.normal(0, 1, 12))[::-1].copy())
    fused = reference + torch.tensor(rng.normal(0, 1.2, 12))
    ref_logp, fused_logp = (scores[None].log_softmax(-1).float() for scores in (reference, fused))
    logp, inverse, _ = trust_region(ref_logp, fused_logp, torch.tensor([radius]))
    return {"reference": ref_logp[0].exp().numpy(), "fused": fused_logp[0].exp().numpy(),
            "served": logp[0].exp().numpy(), "inverse": float(inverse[0])}


def pays() -> dict[str, dict[str, Difference]]:
    """Return per data set the gain in NDCG@10 of each kind of knowledge over behaviour, with its interval."""
    out: dict[str, dict[str, Difference]] = {}
    for dataset in DATA:
        book = RankBook(ROOT / "benchmarks" / "results" / "quality-ranks" / f"{dataset}-stream_time-strict.npz")
        found = {part: book.above(("dense+evidence", part), REFERENCE, [1]) for part in PARTS}
        out[dataset] = {part: difference for part, difference in found.items() if difference is not None}
    return out


def draw_drift(path: Path) -> None:
    """Draw how a change of interest is found."""
    story = drift_story()
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True)
    above.plot(story["distance"], color=BLUE, marker=".", lw=1)
    above.set_ylabel("distance to the interest\nof the knowledge")
    below.plot(story["cusum"], color=GREEN, lw=2)
    below.axhline(DETECTOR.threshold, color=RED, ls="--", lw=1.2)
    below.text(0, DETECTOR.threshold + 0.15, "threshold h", color=RED, fontsize=9)
    below.set(ylabel="evidence of drift (CUSUM)", xlabel="events of one user", ylim=(0, 7.5))
    for axis in (above, below):
        axis.axvline(story["changed"], color=GREY, lw=1, ls=":")
        for at in story["refreshed"]:
            axis.axvline(at, color=RED, lw=1)
    above.text(story["changed"] - 0.4, 1.15, "the interest changes", ha="right", color=GREY, fontsize=9)
    above.text(story["refreshed"][0] + 0.5, 1.15, "refresh: new knowledge", color=RED, fontsize=9)
    above.set_ylim(0, 1.3)
    save(figure, path)


def draw_judge(path: Path) -> None:
    """Draw how bets find harm, and what becomes of trust."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True)
    for mean, colour, name in ((0.15, GREEN, "knowledge that helps"), (-0.35, RED, "knowledge that harms")):
        story = judge_story(mean)
        above.plot(story["wealth"], color=colour, lw=2, label=name)
        below.plot(story["trust"], color=colour, lw=2)
    above.axhline(np.log(1 / ALPHA), color="black", ls="--", lw=1)
    above.text(59, np.log(1 / ALPHA) + 0.2, "log 1/α: contradicted", ha="right", fontsize=9)
    above.set(ylabel="log-wealth of the bet\nthat knowledge harms", ylim=(-6, 4.5))
    above.legend(fontsize=9, loc="lower left")
    below.set(ylabel="trust", xlabel="events of one user", ylim=(-0.05, 1.1))
    save(figure, path)


def draw_region(path: Path) -> None:
    """Draw what is served for three radii."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
    for axis, radius in zip(axes, (0.0, 0.1, 0.5), strict=True):
        story = region_story(radius)
        at = np.arange(len(story["served"]))
        axis.bar(at, story["served"], color="#9ecae1", width=0.8, label="served")
        axis.plot(at, story["reference"], "_", color="black", ms=9, mew=2, label="behaviour alone")
        axis.plot(at, story["fused"], "x", color=RED, ms=6, label="with knowledge")
        axis.set(xlabel="items", xticks=[], title=f"radius {radius:g}, μ = "
                 + (f"{1 / story['inverse']:.1f}" if story["inverse"] else "∞"))
    axes[0].set_ylabel("probability")
    axes[0].legend(fontsize=9)
    save(figure, path)


def draw_price(path: Path) -> None:
    """Draw queue and price while all users change their interest at once."""
    scenario = Scenario("storm", "", users=80, events_per_s=8.0, speed=0.4, duration=700, storm_at=250)
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True)
    for priced, colour, name in ((False, GREY, "without a price"), (True, GREEN, "with the price")):
        story = Simulation(scenario, priced=priced).run()
        above.plot(story.queue, color=colour, lw=2, label=name)
        if priced:
            below.plot(story.price, color=RED, lw=2)
    for axis in (above, below):
        axis.axvline(scenario.storm_at, color=GREY, lw=1, ls=":")
    above.text(scenario.storm_at + 5, 57, "all interests change at once", color=GREY, fontsize=9)
    above.text(0, 57, "all users are new", color=GREY, fontsize=9)
    above.set(ylabel="waiting refreshes", ylim=(0, 65))
    above.legend(fontsize=9, loc="upper right")
    below.set(ylabel="price μ of a refresh", xlabel="seconds")
    save(figure, path)


def draw_pays(path: Path) -> None:
    """Draw what each kind of item knowledge adds, with intervals."""
    found = pays()
    figure, axes = plt.subplots(1, len(found), figsize=(9, 2.6), sharey=True)
    for axis, (dataset, parts) in zip(axes, found.items(), strict=True):
        for at, (part, gain) in enumerate(parts.items()):
            colour = GREEN if gain.low > 0 else RED if gain.high < 0 else GREY
            axis.errorbar(gain.mean, at, xerr=[[gain.mean - gain.low], [gain.high - gain.mean]], fmt="o", color=colour,
                          capsize=4, lw=2)
            axis.set_yticks(range(len(PARTS)), list(PARTS.values()))
            assert list(PARTS)[at] == part
        axis.axvline(0, color="black", lw=1)
        axis.locator_params(axis="x", nbins=4)
        axis.set(title=DATA[dataset], xlabel="added NDCG@10, 95% interval")
    axes[0].set_ylim(len(PARTS) - 0.5, -0.5)
    save(figure, path)


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "concept-drift.svg": draw_drift, "concept-judge.svg": draw_judge, "concept-region.svg": draw_region,
    "concept-price.svg": draw_price, "concept-pays.svg": draw_pays}


def save(figure: Any, path: Path) -> None:
    """Write a figure so that the same drawing is the same file."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = path.stem
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder to write the pictures into")
    folder = parser.parse_args().out
    for name, draw in DRAWINGS.items():
        draw(folder / name)
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
