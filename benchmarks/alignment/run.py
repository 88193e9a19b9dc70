"""Does fine-tuning on contradicted users help other users?

    FRESHET_HOME=HOME python -m benchmarks.alignment.run --data DIR [--quick]

HOME contains a model fitted on DIR (`freshet fit --data DIR`). Knowledge is generated for users in the part of the
timeline that was not used for fitting. The judge tests it on the events that follow. Contradicted users are split: an
adapter is trained on some of them. It is evaluated on the events of the others *after* their contradiction, and on
users without evidence of harm. Writes benchmarks/results/alignment.json and docs/alignment.svg; deploys nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from safetensors.torch import load_file, save_file

from models.aligning.align import Groups, align
from models.aligning.cohort import Cohort, FrozenModels, Margins, margins
from models.aligning.publication import FEWEST
from models.data import dataset as data
from models.data.dataset import IntArray
from models.data.loading import load_dataset
from models.data.sequences import Sequences
from models.measuring.intervals import paired_interval
from models.scorers.snapshots import regular
from models.serving.knowledge_model import load_knowledge
from models.serving.ranking_model import TEXTS, RankingModel
from schemas.artifacts import Artifact, Registry
from schemas.errors import FreshetError
from schemas.settings import Settings, load
from streams.detection.trust import wager
from workers.roles.alignment.training_users import MIN_LATER_EVENTS
from workers.terminal.stages import Stages
from workers.training.language import open_language
from workers.training.revision import revision

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Verdicts:
    """Snapshots of a cohort by the judge's verdict; no user is in both groups.

    Args:
        wrong: (w,) snapshots contradicted at level α, the first of each user.
        crossed: (w,) index of the event at which the test crossed its threshold.
        calm: (c,) snapshots of other users, with final wealth at most 1.
    """

    wrong: IntArray
    crossed: IntArray
    calm: IntArray


def find_contradictions(cohort: Cohort, judged: Margins, bound: float, alpha: float) -> Verdicts:
    """Test the knowledge of every snapshot, as streams does."""
    parts = np.split(judged.value, np.flatnonzero(np.diff(judged.snapshot)) + 1)
    contradicted: dict[int, tuple[int, int]] = {}
    calm: dict[int, int] = {}
    users = cohort.users
    for snapshot, values in zip(np.unique(judged.snapshot).tolist(), parts, strict=True):
        _, wealth, crossed = wager([], values.tolist(), bound, alpha)
        if crossed is not None:
            contradicted.setdefault(int(users[snapshot]), (snapshot, crossed))
        elif wealth <= 0:
            calm.setdefault(int(users[snapshot]), snapshot)
    wrong = np.array(list(contradicted.values()), dtype=np.int64).reshape(-1, 2)
    return Verdicts(
        wrong[:, 0], wrong[:, 1], np.array([s for u, s in calm.items() if u not in contradicted], np.int64))


def groups(cohort: Cohort, verdicts: Verdicts, held_out: float, limit: int, seed: int) -> tuple[Groups, Cohort]:
    """Return the groups for training and evaluation, and the snapshots that contradicted the evaluation users.

    Training uses all snapshots of contradicted users; the mask selects the events. Evaluation uses all events after the
    contradiction (or after the tested events of users without one), with new knowledge every `span` events.

    Args:
        limit: maximum number of users of each kind.
    """
    rng = np.random.default_rng(seed)

    def split(snapshots: IntArray, after: IntArray) -> tuple[Cohort, Cohort, IntArray]:
        order = rng.permutation(len(snapshots))[:limit]
        cut = round(held_out * len(order))
        training, evaluation = order[cut:], order[:cut]
        stop = cohort.sequences.offsets[cohort.users[snapshots] + 1]
        later = [np.arange(after[index], stop[index] - MIN_LATER_EVENTS + 1, cohort.span) for index in evaluation]
        training_rows = np.flatnonzero(np.isin(cohort.users, cohort.users[snapshots[training]]))
        rows = np.concatenate([*later, np.zeros(0, np.int64)])
        return cohort[training_rows], Cohort(cohort.sequences, rows, cohort.span), evaluation

    wrong, later, evaluation = split(verdicts.wrong, cohort.rows[verdicts.wrong] + verdicts.crossed + 1)
    calm, later_calm, _ = split(verdicts.calm, cohort.rows[verdicts.calm] + cohort.span)
    return Groups(wrong, calm, later, later_calm), cohort[verdicts.wrong[evaluation]]


def mirrored(folder: Path) -> Path:
    """Return a copy of an adapter with the opposite effect, to first order.

    A change that both adapters cause is not learned: users selected for bad margins improve with any change.
    """
    out = folder.parent / "mirrored"
    out.mkdir(exist_ok=True)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: -value if "lora_B" in name else value for name, value in weights.items()},
              out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    return out


def load_parts(settings: Settings, artifact: Artifact, stages: Stages) -> FrozenModels:
    """Return the fitted models."""
    texts = list(orjson.loads(artifact.path(TEXTS).read_bytes()))
    llm, cache = open_language(settings, texts, stages)
    return FrozenModels(RankingModel.load(artifact), load_knowledge(artifact, llm), cache, llm, settings.llm.history,
                 settings.llm.batch, settings.ranking.current_evidence).freeze()


def unseen(folder: Path, artifact: Artifact, events: int, seed: int) -> Cohort:
    """Return snapshots of about `events` events in the part of the timeline that was not used for fitting."""
    dataset = load_dataset(folder)
    if dataset.hash != artifact.card.data_hash:
        raise FreshetError(f"model {artifact.model_version} was fitted on other data than {folder}; "
                           f"run `freshet fit --data {folder}` first")
    past, _ = data.split(dataset, float(artifact.card.settings["fit"]["train_fraction"]))
    sequences = Sequences.of(dataset.events, len(dataset.users))
    begin = sequences.offsets[:-1] + np.bincount(past.user, minlength=len(dataset.users))
    rows = regular(sequences, begin)
    order = np.random.default_rng(seed).permutation(np.unique(np.searchsorted(sequences.offsets, rows, "right") - 1))
    after = sequences.offsets[1:] - begin
    chosen = order[: int(np.searchsorted(np.cumsum(after[order]), events)) + 1]
    user = np.searchsorted(sequences.offsets, rows, "right") - 1
    return Cohort(sequences, rows[np.isin(user, chosen)])


def run(
    settings: Settings, folder: Path, events: int, users: int, seed: int, stages: Stages,
) -> dict[str, Any]:
    """Run the experiment and return its figures."""
    artifact = Registry(settings.home).open()
    parts = load_parts(settings, artifact, stages)
    cohort = unseen(folder, artifact, events, seed)
    bound, alpha = artifact.calibration().margin_bound, settings.refresh.alpha
    with stages.stage("judge", 300.0) as step:
        done = 0

        def judged() -> None:
            nonlocal done
            done += parts.batch
            step(min(done, len(cohort)), len(cohort))

        verdicts = find_contradictions(cohort, margins(parts, cohort, judged), bound, alpha)
    split, contradicting = groups(cohort, verdicts, settings.alignment.held_out, users, seed)
    training, calm, evaluation, calm_evaluation = (len(np.unique(part.users)) for part in (
        split.contradicted, split.untouched, split.held_contradicted, split.held_untouched))
    stages.say(f"{len(cohort)} snapshots: {len(verdicts.wrong)} users contradicted at {alpha:g}, {len(verdicts.calm)} "
               f"without evidence of harm; training on {training} and {calm}, evaluation on {evaluation} and "
               f"{calm_evaluation}")
    if min(training, evaluation, calm_evaluation) < FEWEST:
        raise FreshetError(f"too few users for training or evaluation (at least {FEWEST} each): raise --events or use "
                           "data with longer histories; a contradiction takes at least 10 events of a user")
    path: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch, stages.stage("train and judge", 600.0) as step:
        def record(done: int, total: int, metrics: dict[str, float]) -> None:
            path.extend([metrics] if metrics else [])
            step(done, total, " ".join(f"{name} {value:.3f}" for name, value in metrics.items()))

        adapter = Path(scratch) / "adapter"
        outcome = align(parts, split, settings.alignment, adapter, bound, record, seed)
        controls = _controls(parts, adapter, split.held_contradicted, contradicting, bound)
    return {
        "model_version": artifact.model_version, "data_hash": artifact.card.data_hash, "llm": parts.llm.model_id,
        "settings": asdict(settings.alignment), "alpha": alpha, "margin_bound": bound, "seed": seed,
        "snapshots": len(cohort), "contradicted": len(verdicts.wrong), "untouched": len(verdicts.calm),
        "published": outcome.verdict.publish, "reason": outcome.verdict.reason,
        "figures": outcome.figures() | controls, "path": path, "revision": revision(),
        "harm": {name: np.round(values, 4).tolist() for name, values in (
            ("before", outcome.before.harm), ("after", outcome.after.harm))}}


def _controls(
    parts: FrozenModels, adapter: Path, later: Cohort, contradicting: Cohort, bound: float,
) -> dict[str, float]:
    """Return the change on the contradicting events, and the effect of the mirrored adapter on both kinds of events."""
    out: dict[str, float] = {}
    cohorts = {"later": later, "convicting": contradicting}  # names in benchmarks/results/alignment.json
    used = parts.llm.adapter
    before = {name: margins(parts, cohort) for name, cohort in cohorts.items()}
    for kind, folder in (("taught", adapter), ("mirrored", mirrored(adapter))):
        parts.llm.load_adapter(folder, kind)
        parts.llm.use_adapter(kind)
        for name, cohort in cohorts.items():
            old, new = (np.clip(m.value, -bound, bound) for m in (before[name], margins(parts, cohort)))
            change = paired_interval(before[name].user, new - old)
            out |= dict(zip([f"{kind}_{name}_{part}" for part in ("change", "low", "high")], change, strict=True))
        parts.llm.use_adapter(used)
    return out


def table(result: dict[str, Any]) -> str:
    """Return the figures as lines."""
    figures = result["figures"]
    lines = [f"{'held-out users':<44}{'users':>6}{'events':>8}{'before':>9}{'after':>9}{'change':>9}  95% interval"]
    for name, title in (("contradicted", "contradicted, events after it"),
                        ("untouched", "no evidence of harm, later events")):
        lines.append(
            f"{title:<44}{figures[name + '_users']:>6.0f}{figures[name + '_events']:>8.0f}"
            f"{figures[name + '_before']:>+9.4f}{figures[name + '_after']:>+9.4f}{figures[name + '_change']:>+9.4f}"
            f"  [{figures[name + '_low']:+.4f}, {figures[name + '_high']:+.4f}]")
    for name, title in (("taught_convicting", "contradicted, the contradicting events"),
                        ("mirrored_later", "mirrored adapter, later events"),
                        ("mirrored_convicting", "mirrored adapter, contradicting events")):
        lines.append(f"{title:<76}{figures[name + '_change']:>+9.4f}"
                     f"  [{figures[name + '_low']:+.4f}, {figures[name + '_high']:+.4f}]")
    lines.append(f"trigger rate {figures['trigger_rate_first']:.2f} → {figures['trigger_rate_last']:.2f}; share of "
                 f"held-out events harmed {figures['harmed_before']:.3f} → {figures['harmed_after']:.3f}; "
                 f"{figures['steps']:.0f} steps in {figures['training_seconds']:.0f} s")
    return "\n".join([*lines, ("published: " if result["published"] else "rejected: ") + result["reason"]])


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the distribution of ℓ⁺ − ℓ⁰ before and after training, and the training curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, values in result["harm"].items():
        left.plot(np.sort(values), np.linspace(0, 1, len(values)), label=name)
    left.axvline(0, color="grey", lw=0.8)
    left.set(xlabel="ℓ⁺ − ℓ⁰ of held-out contradicted users, nats", ylabel="share of events below")
    left.legend()
    steps = np.arange(1, len(result["path"]) + 1)
    right.plot(steps, [at["trigger_rate"] for at in result["path"]], label="trigger rate")
    right.plot(steps, [at["kl"] for at in result["path"]], label="KL on untouched users, nats")
    right.set(xlabel="training step", ylim=(0, 1))
    right.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with events.csv and items.jsonl")
    parser.add_argument("--events", type=int, default=20_000, help="approximate number of events to judge")
    parser.add_argument(
        "--alpha", type=float, default=0.5,
        help="level of a contradiction; at the judge's .05 no MovieLens user is contradicted within 24 events")
    parser.add_argument("--users", type=int, default=200, help="maximum number of users of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="smoke test: 10 steps on 5,000 events")
    arguments = parser.parse_args()
    settings, events = load(), arguments.events
    settings = replace(settings, home=settings.home.absolute())
    if arguments.quick:
        settings, events = replace(settings, alignment=replace(settings.alignment, steps=10)), 5000
    settings = replace(settings, refresh=replace(settings.refresh, alpha=arguments.alpha))
    began = time.monotonic()
    try:
        with Stages() as stages:
            result = run(settings, arguments.data, events, arguments.users, arguments.seed, stages)
    except FreshetError as error:
        raise SystemExit(f"benchmarks.alignment.run: {error}") from None
    result |= {"seconds": round(time.monotonic() - began, 1), "dataset": arguments.data.name}
    print(table(result))
    if not arguments.quick:
        out = ROOT / "benchmarks" / "results" / "alignment.json"
        out.write_text(json.dumps(result) + "\n")
        plot(result, ROOT / "docs" / "alignment.svg")
        print(f"written to {out}")


if __name__ == "__main__":
    main()
