"""The frontier: gain over behaviour alone against LLM calls, for all refresh policies at several budgets.

    python -m benchmarks.frontier.run [--quick] [--datasets movielens,beauty] [--budgets 25,50,100,200] [--seeds 42,43]

Each data set has its own home folder. Per data set and seed a model is fitted if there is none, and every policy is
replayed (`freshet replay`). At each budget `freshet` runs first; the others are then tuned to the number of calls it
made. Finished points are stored in the home folder, so an interrupted run can be resumed.
Writes benchmarks/results/frontier.json and the tables and plots of docs/frontier.md; other data sets stay as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from benchmarks.frontier import page
from benchmarks.frontier.points import ROOT, Point, PointFolder, code_hash, grouped, share_of, versus
from schemas.artifacts import Registry
from schemas.errors import ArtifactError, FreshetError
from schemas.settings import Evidence, Settings, load, to_environ
from streams.decisions.policies import PolicyName
from workers.data import movielens
from workers.replay.session import ReplaySession
from workers.terminal.stages import Stages
from workers.training.revision import revision

BEAUTY = ROOT.parent / "shared" / "data" / "amazon-beauty"
# Replays: name, policy and evidence. Evidence is "stored" with the knowledge, as in systems that only regenerate it, or
# "current" at ranking, as in Freshet. The last entries of each list separate the effect of evidence from the policy's.
FIXED: tuple[tuple[str, PolicyName, Evidence], ...] = (
    ("always", "always", "stored"),  # first, so that the other policies reuse its generations
    ("never", "never", "stored"), ("once", "once", "stored"), ("once, current evidence", "once", "current"))
TUNED: tuple[tuple[str, PolicyName, Evidence], ...] = (
    ("nightly", "nightly", "stored"), ("every-n", "every-n", "stored"), ("drift", "drift", "stored"),
    ("judge", "judge", "stored"), ("freshet, stored evidence", "freshet", "stored"),
    ("every-n, current evidence", "every-n", "current"))
FIELDS = ("dataset", "policy", "evidence", "budget", "seed", "calls_per_1000", "ndcg_at_10", "gain", "gain_interval",
          "median_age_s", "median_age_events", "recall_at_10", "reference_ndcg_at_10", "refreshes", "setting",
          "llm_seconds", "store_bytes_per_user", "state_bytes_per_user", "events", "predicted", "calls", "stock",
          "stocked", "wall_s",
          "model_version", "revision")


class Home:
    """A data set and the home folder of its models, generations and points."""

    def __init__(
        self, name: str, folder: Path, home: Path, settings: Settings, *, as_fitted: bool = False, stock: bool = True,
    ) -> None:
        self.name, self._folder, self._as_fitted, self._stock = name, folder, as_fitted, stock
        self._settings = replace(settings, home=home.absolute())

    def points(self, seed: int, budgets: list[float], events: int, stages: Stages) -> list[Point]:
        """Return the points of all policies for one seed; replay those that are not stored."""
        settings = replace(self._settings, fit=replace(self._settings.fit, seed=seed))
        if not (self._as_fitted and _has_model(settings)):
            self._fit(settings)
        artifact = Registry(settings.home).open()
        stored = PointFolder(settings.home / "cache" / "frontier" / f"{artifact.model_version}-{code_hash()}")
        session: list[ReplaySession] = []

        def point(
            name: str, policy: PolicyName, evidence: Evidence, budget: float | None = None, target: float | None = None,
        ) -> Point:
            key = _key(settings, name, budget, target, seed, events, self._stock)
            result = stored.find(key)
            if result is None:
                stages.say(f"{self.name}, seed {seed}: {name}" + (f" at {budget:g}" if budget else ""))
                if not session:
                    session.append(ReplaySession(settings, self._folder, stages, events, stock=self._stock))
                outcome = session[0].run(policy, target, seed, evidence)
                figures = outcome.figures | {
                    "dataset": self.name, "policy": name, "budget": budget, "wall_s": round(outcome.wall_s, 1),
                    "revision": revision()}
                result = stored.keep(key, figures, outcome.columns)
            figures = result.figures
            stages.say(f"  {name:25} {figures['calls_per_1000']:7.1f} calls per 1,000, gain {figures['gain']:+.4f}")
            return result

        out = [point(*replay) for replay in FIXED]
        for budget in budgets:
            priced = point("freshet", "freshet", "current", budget, budget)
            target = priced.figures["calls_per_1000"] or budget
            out += [priced, *(point(*replay, budget, target) for replay in TUNED)]
        return out

    def _fit(self, settings: Settings) -> None:
        """Fit in a separate process, so that the memory of training is released before the replays."""
        settings = replace(settings, fit=replace(settings.fit, parts="on"))  # refreshes are what is measured
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FRESHET_")} | to_environ(settings)
        command = [sys.executable, "-m", "workers.cli", "fit", "--data", str(self._folder.absolute())]
        if subprocess.run(command, env=environ, cwd=ROOT, check=False).returncode != 0:
            raise FreshetError(f"{self.name} could not be fitted; see the message above")


def _has_model(settings: Settings) -> bool:
    try:
        return Registry(settings.home).open().card.settings.get("fit", {}).get("seed") == settings.fit.seed
    except ArtifactError:
        return False


def _key(settings: Settings, name: str, budget: float | None, target: float | None, *others: object) -> str:
    parts = [asdict(settings.refresh), asdict(settings.state), asdict(settings.llm), settings.ranking.epsilon,
             name, budget, target, *others]
    digest = hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()
    return f"{name.replace(', ', '-').replace(' ', '-')}-{'' if budget is None else f'{budget:g}-'}{digest}"


def compared(points: list[Point]) -> dict[float | None, dict[str, Any]]:
    """Return per budget the comparison of `freshet` with each other policy over all seeds, and with `always`."""
    groups = grouped(points)
    out: dict[float | None, dict[str, Any]] = {}
    for (policy, budget), mine in groups.items():
        if policy == "freshet":
            others = {name: versus(mine, theirs) for (name, other), theirs in groups.items()
                      if name != "freshet" and other in (budget, None)}
            out[budget] = {"against": others, "of_always": share_of(mine, groups["always", None])}
    return out


def results(points: list[Point], comparisons: dict[float | None, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a data set's rows of frontier.json, one per point; those of `freshet` include the comparisons."""
    out = []
    for point in points:
        row = {name: point.figures[name] for name in FIELDS}
        out.append(row | comparisons[point.name[1]] if point.name[0] == "freshet" else row)
    return out


def datasets(names: list[str], homes: Path, settings: Settings, say: Callable[[str], None], **options: bool
             ) -> list[Home]:
    """Return the requested data sets; Beauty only if its folder exists.

    Raises:
        FreshetError: no data set is available, or a name is unknown.
    """
    out = []
    for name in names:
        if name == "movielens":
            home = homes / "movielens-100k"
            out.append(Home("movielens-100k", movielens.fetch(home, say), home, settings, **options))
        elif name == "beauty":
            if BEAUTY.is_dir():
                out.append(Home("amazon-beauty", BEAUTY, homes / "amazon-beauty", settings, **options))
            else:
                say(f"skipping Beauty: {BEAUTY} does not exist")
        else:
            raise FreshetError(f"unknown data set {name!r}; --datasets accepts movielens and beauty")
    if not out:
        raise FreshetError("no data set to replay")
    return out


def quick(folder: Path) -> tuple[Home, list[float], int]:
    """Return a synthetic data set, with the tests' language model of a few thousand random weights."""
    from tests.models import tiny
    from tests.system.world import write_data

    settings = Settings()
    settings = replace(
        settings, fit=replace(settings.fit, dim=16, epochs=2, knowledge_epochs=1, instructions=3, codes=8),
        llm=replace(settings.llm, name=str(tiny.save(folder / "llm")), device="cpu"))
    return Home("made-up", write_data(folder / "data"), folder / "home", settings), [200.0], 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="movielens,beauty", help="comma-separated")
    parser.add_argument("--budgets", default="25,50,100,200,400", help="LLM calls per 1,000 events, comma-separated")
    parser.add_argument("--seeds", default="42", help="seeds of the fits, comma-separated")
    parser.add_argument("--events", type=int, default=0, help="number of events to replay after the split; 0 = all")
    parser.add_argument("--homes", type=Path, default=ROOT / ".freshet" / "frontier",
                        help="folder with a FRESHET_HOME per data set: movielens-100k, amazon-beauty")
    parser.add_argument("--as-fitted", action="store_true",
                        help="use the home's current model even if code has changed since it was fitted")
    parser.add_argument("--cold", action="store_true",
                        help="users of the training part start without knowledge; every policy pays for their first")
    parser.add_argument("--quick", action="store_true", help="synthetic data, takes seconds, writes nothing")
    args = parser.parse_args()
    try:
        with Stages() as stages, tempfile.TemporaryDirectory() as scratch:
            budgets, events = [float(x) for x in args.budgets.split(",") if x], args.events
            if args.quick:
                home, budgets, events = quick(Path(scratch))
                homes, seeds = [home], [42]
            else:
                homes = datasets([name.strip() for name in args.datasets.split(",")], args.homes, load(), stages.say,
                                 as_fitted=args.as_fitted, stock=not args.cold)
                seeds = [int(x) for x in args.seeds.split(",")]
            for home in homes:
                points = [point for seed in seeds for point in home.points(seed, budgets, events, stages)]
                comparisons = compared(points)
                text = page.table(points, comparisons)
                print(text)
                if not args.quick:
                    page.write(results(points, comparisons), points, text)
                    stages.say(f"{home.name}: {len(points)} points written to {page.JSON_PATH}")
    except FreshetError as error:
        print(f"frontier: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
