"""Is knowledge of users worth its calls where it can be: at session starts, written by a strong language model?

    python -m benchmarks.sessions.run [--data DIR] [--home DIR] [--closed-form] [--quick]

Texts were recorded once and are replayed (docs/sessions.md says what the folder holds). Everything is chosen on the
moments called `training`: how a text is used, its weight, the trust radius and the judge's bound. Then the rows are
measured at `first` and `later` moments, and the policies are played. Writes benchmarks/results/sessions.json, and the
tables and plots of docs/sessions.md. Trained scorers and encodings are kept under --home.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import fill
from benchmarks.sessions import behaviour, page, plots
from benchmarks.sessions.ageing import Played, PolicyStage, course_of, foresight, policies
from benchmarks.sessions.choose import best_of, choose, figures
from benchmarks.sessions.guard import Use, interest_vectors, margins_of, radius_of, thresholds
from benchmarks.sessions.ideas import IDEAS, Idea
from benchmarks.sessions.moments import read_moments
from benchmarks.sessions.rows import Server, at_first, at_later, policy_gains, with_every_idea
from benchmarks.sessions.world import World
from models.data.loading import load_dataset
from models.data.written import PLACE, read_written
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.language.sentences import SentenceEncoder, encoded
from models.measuring.harm import DELTA
from models.measuring.protocols import stream_time
from schemas.errors import FreshetError
from schemas.files import write_whole
from schemas.settings import RefreshSettings, Settings
from workers.terminal.stages import Stages
from workers.training.revision import revision
from workers.training.scorer_cache import ScorerCache

ROOT = Path(__file__).resolve().parents[2]
JSON_PATH, PAGE = ROOT / "benchmarks" / "results" / "sessions.json", ROOT / "docs" / "sessions.md"
BEAUTY = ROOT.parent / "shared" / "data" / "amazon-beauty"
# As in benchmarks/quality: chosen on the reference's held-out events.
DROPOUT, EPOCHS = 0.4, 40
# Of the closed form; docs/results.md compares them on held-out events.
PARTS = Parts(encoder=0.6, written=0.6)  # the words of the texts are among what was written, joined


def load(folder: Path, home: Path, settings: Settings, stages: Stages, *, transformer: bool = True,
         encoder: bool = True) -> World:
    """Read data and texts, encode texts, fit the reference; what was done before is read from `home`.

    Raises:
        FreshetError: data or texts are missing or do not belong together.
    """
    with stages.stage("data", 300.0):
        dataset = load_dataset(folder, settings.events)
        split = stream_time(dataset, settings.fit.train_fraction, seed=settings.fit.seed)
        moments = read_moments(folder, dataset, split.test)
        found = read_written(folder / PLACE, dataset.items, dataset.texts)
        written = None if found is None else [found.texts.get(item, "") for item in dataset.items]
    items, users = None, dict.fromkeys(moments)
    if encoder:
        with stages.stage("sentence encoder", 900.0) as step:
            model = SentenceEncoder.load(device="cpu")
            items = encoded(model, dataset.texts, home / "encodings", step)
            users = {kind: encoded(model, some.text, home / "encodings", step) for kind, some in moments.items()}
    knowledge = ItemKnowledge(dataset.texts, written, items)
    parts = replace(PARTS, encoder=PARTS.encoder if encoder else 0.0)
    fitted = behaviour.fit(split, settings.fit, settings.state.history, knowledge, parts, home / "closed-forms",
                           ScorerCache(home / "scorers"), stages.say, transformer)
    return World(dataset, split, moments, fitted, knowledge, users)


def run(
    world: World, settings: Settings, stages: Stages, ideas: Sequence[Idea] = IDEAS,
    tried: Sequence[tuple[str, RefreshSettings]] | None = None,
) -> dict[str, Any]:
    """Return all figures.

    Args:
        ideas: to choose from.
        tried: policies to play, among them `once`; None = all.
    """
    began = time.monotonic()
    world = world.calibrated()
    training, targets = world.moments["training"], world.targets("training")
    material = world.material("training")
    base = figures(material.base, targets)
    stages.say(f"closed form {world.behaviour.gain:g}, temperature {world.behaviour.temperature:g}, NDCG@10 of the "
               f"training moments {base.ndcg.mean():.4f}")
    choices = []
    for idea in ideas:
        choices.append(choose(idea, material, targets, training.user, base))
        mean, low, high = choices[-1].crossed
        stages.say(f"{idea.name}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] {choices[-1].weights}")
    use = Use.of(best_of(choices), material, targets)
    length = material.length.numpy()
    epsilon, scored = radius_of(material.base, use(material), targets, training.user, length, settings.fit.harm)
    chosen, epsilon = epsilon, epsilon or DELTA  # with a radius of 0 there would be nothing to guard
    vectors = interest_vectors(world)
    calibration = thresholds(world, vectors, settings, epsilon, scored)
    stages.say(f"radius {epsilon:g}, B {calibration.margin_bound:.3f}, h {calibration.drift_threshold:.2f}")
    course = course_of(world)
    margins = margins_of(world, course, use, stages.say)
    stage = PolicyStage(world, course, vectors, calibration, settings, lambda row, text: margins[row, text])
    played = {}
    for name, refresh in tried or policies():
        played[name] = stage.play(refresh)
        stages.say(f"{name}: {played[name].calls} calls")
    server = Server(world, use, "later", ("first", "later"))
    rows = {"first": at_first(world, use, epsilon), "later": at_later(world, server, played["once"], epsilon)}
    named = {row.name: row for row in rows["later"]}
    return {
        "dataset": world.dataset.hash[:12], "revision": revision(),
        "moments": {kind: len(some) for kind, some in world.moments.items()}, "users": len(course.first),
        "reference": {"gain": world.behaviour.gain, "temperature": world.behaviour.temperature,
                      "training_ndcg_at_10": float(base.ndcg.mean())},
        "ideas": [choice.record() for choice in choices],
        "chosen": {"idea": use.choice.idea.name, "weights": use.choice.weights, "temperature": use.temperature},
        "guard": {"calibrated_epsilon": chosen, "epsilon": epsilon, "margin_bound": calibration.margin_bound,
                  "drift_threshold": calibration.drift_threshold, "ttl_days": calibration.ttl_s / 86_400},
        "rows": {kind: [row.record(found[0]) for row in found] for kind, found in rows.items()},
        "fresh_above_stale": named["fresh"].against(named["stale"]),
        "fresh_above_stale_whole": named["fresh"].whole_against(named["stale"]),
        "every_idea": with_every_idea(world, choices, stages.say),
        "policies": policy_gains(server, played, epsilon, stages.say),
        "foresight": foreseen(server, played["once"], margins), "wall_s": round(time.monotonic() - began, 1)}


def foreseen(server: Server, once: Played, margins: dict[tuple[int, int], float]) -> dict[str, dict[str, float]]:
    """Return per trigger how well it foresees, just before a session, that the text of the first moment harms there."""
    moments = server.moments
    glances = [once.glances[row] for row in moments.row.tolist()]
    useless = -np.array([
        np.mean([margins[row, glance.text] for row in range(begin, stop)])
        for begin, stop, glance in zip(moments.row.tolist(), moments.stop.tolist(), glances, strict=True)])
    return {name: foresight(np.array([glance.signals[name] for glance in glances]), useless, moments.user)
            for name in glances[0].signals}


def quick(folder: Path) -> Path:
    """Write a made-up world with planted texts and return its folder."""
    from tests.benchmarks.sessions.made_up import write

    return write(folder / "data")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=BEAUTY, help="folder with events.csv, items.jsonl and knowledge/")
    parser.add_argument("--home", type=Path, default=ROOT / ".freshet" / "sessions",
                        help="where encodings and trained scorers are kept")
    parser.add_argument("--closed-form", action="store_true", help="leave the transformer out of the reference")
    parser.add_argument("--seed", type=int, default=1, help="of the transformer")
    parser.add_argument("--quick", action="store_true", help="a made-up world, seconds, writes nothing")
    args = parser.parse_args()
    settings = Settings()
    settings = replace(settings, fit=replace(
        settings.fit, dropout=DROPOUT, epochs=EPOCHS, seed=args.seed, device="cpu"))
    try:
        with Stages() as stages, tempfile.TemporaryDirectory() as scratch:
            folder, home = args.data, args.home
            if args.quick:
                folder, home = quick(Path(scratch)), Path(scratch)
            world = load(folder, home, settings, stages, transformer=not (args.closed_form or args.quick),
                         encoder=not args.quick)
            result = run(world, settings, stages)
    except FreshetError as error:
        print(f"sessions: {error}", file=sys.stderr)
        return 1
    text = page.tables(result)
    print(text)
    if not args.quick and not args.closed_form:
        write_whole(JSON_PATH, json.dumps(result, indent=2).encode() + b"\n")
        fill(PAGE, "sessions", text)
        plots.draw(result, PAGE.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
