"""The frontier: gain over behaviour alone against LLM calls, all refresh policies at several budgets.

    python -m benchmarks.frontier.run [--quick] [--datasets movielens,beauty] [--budgets 25,50,100,200] [--seeds 42,43]

Per data set and seed a model is fitted (if there is none) in a home folder of the data set's own, and every policy is
replayed (`freshet replay`). `freshet` goes first at each budget; the knobs of the others are then turned to the calls
it really made. Finished points are kept in the home, so an interrupted run goes on where it was.
Results: benchmarks/results/frontier.json, tables and plots of docs/frontier.md; those of other data sets stay.
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
# What is played: a name, the policy, and its evidence: as it was when knowledge was generated, the practice of systems
# that only regenerate, or brought up to date at ranking, as Freshet does. The last of each list tell the two apart.
FIXED: tuple[tuple[str, PolicyName, Evidence], ...] = (
    ("always", "always", "stored"),  # first: what the LLM says to it, every other policy asks again
    ("never", "never", "stored"), ("once", "once", "stored"), ("once, current evidence", "once", "current"))
TURNED: tuple[tuple[str, PolicyName, Evidence], ...] = (
    ("nightly", "nightly", "stored"), ("every-n", "every-n", "stored"), ("drift", "drift", "stored"),
    ("judge", "judge", "stored"), ("freshet, stored evidence", "freshet", "stored"),
    ("every-n, current evidence", "every-n", "current"))
FIELDS = ("dataset", "policy", "evidence", "budget", "seed", "calls_per_1000", "ndcg_at_10", "gain", "gain_interval",
          "median_age_s", "median_age_events", "recall_at_10", "reference_ndcg_at_10", "refreshes", "setting",
          "llm_seconds", "store_bytes_per_user", "state_bytes_per_user", "events", "predicted", "calls", "stock",
          "stocked", "wall_s",
          "model_version", "revision")


class Home:
    """A data set with the home its models, generations and points are in."""

    def __init__(
        self, name: str, folder: Path, home: Path, settings: Settings, *, as_fitted: bool = False, stock: bool = True,
    ) -> None:
        self.name, self._folder, self._as_fitted, self._stock = name, folder, as_fitted, stock
        self._settings = replace(settings, home=home.absolute())

    def points(self, seed: int, budgets: list[float], events: int, stages: Stages) -> list[Point]:
        """Return every policy's points of one seed, playing what is not kept."""
        settings = replace(self._settings, fit=replace(self._settings.fit, seed=seed))
        if not (self._as_fitted and _has_model(settings)):
            self._fit(settings)
        artifact = Registry(settings.home).open()
        kept = PointFolder(settings.home / "cache" / "frontier" / f"{artifact.model_version}-{code_hash()}")
        session: list[ReplaySession] = []

        def point(
            name: str, policy: PolicyName, evidence: Evidence, budget: float | None = None, target: float | None = None,
        ) -> Point:
            key = _key(settings, name, budget, target, seed, events, self._stock)
            found = kept.find(key)
            if found is None:
                stages.say(f"{self.name}, seed {seed}: {name}" + (f" at {budget:g}" if budget else ""))
                if not session:
                    session.append(ReplaySession(settings, self._folder, stages, events, stock=self._stock))
                outcome = session[0].run(policy, target, seed, evidence)
                figures = outcome.figures | {
                    "dataset": self.name, "policy": name, "budget": budget, "wall_s": round(outcome.wall_s, 1),
                    "revision": revision()}
                found = kept.keep(key, figures, outcome.columns)
            figures = found.figures
            stages.say(f"  {name:25} {figures['calls_per_1000']:7.1f} calls per 1,000, gain {figures['gain']:+.4f}")
            return found

        out = [point(*one) for one in FIXED]
        for budget in budgets:
            priced = point("freshet", "freshet", "current", budget, budget)
            target = priced.figures["calls_per_1000"] or budget
            out += [priced, *(point(*one, budget, target) for one in TURNED)]
        return out

    def _fit(self, settings: Settings) -> None:
        """Fit in a process of its own: the memory of training is free again before the replays."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FRESHET_")} | to_environ(settings)
        command = [sys.executable, "-m", "workers.cli", "fit", "--data", str(self._folder.absolute())]
        if subprocess.run(command, env=environ, cwd=ROOT, check=False).returncode != 0:
            raise FreshetError(f"{self.name} could not be fitted; the message is above")


def _has_model(settings: Settings) -> bool:
    try:
        return Registry(settings.home).open().card.settings.get("fit", {}).get("seed") == settings.fit.seed
    except ArtifactError:
        return False


def _key(settings: Settings, name: str, budget: float | None, target: float | None, *others: object) -> str:
    what = [asdict(settings.refresh), asdict(settings.state), asdict(settings.llm), settings.ranking.epsilon,
            name, budget, target, *others]
    digest = hashlib.blake2b(orjson.dumps(what, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()
    return f"{name.replace(', ', '-').replace(' ', '-')}-{'' if budget is None else f'{budget:g}-'}{digest}"


def compared(points: list[Point]) -> dict[float | None, dict[str, Any]]:
    """Return per budget how `freshet` does against each other policy, over all seeds, and its share of `always`."""
    groups = grouped(points)
    out: dict[float | None, dict[str, Any]] = {}
    for (policy, budget), mine in groups.items():
        if policy == "freshet":
            others = {name: versus(mine, theirs) for (name, other), theirs in groups.items()
                      if name != "freshet" and other in (budget, None)}
            out[budget] = {"against": others, "of_always": share_of(mine, groups["always", None])}
    return out


def results(points: list[Point], comparisons: dict[float | None, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a data set's rows of frontier.json: a point each; those of `freshet` with comparisons over all seeds."""
    out = []
    for point in points:
        row = {name: point.figures[name] for name in FIELDS}
        out.append(row | comparisons[point.name[1]] if point.name[0] == "freshet" else row)
    return out


def datasets(names: list[str], homes: Path, settings: Settings, say: Callable[[str], None], **how: bool
             ) -> list[Home]:
    """Return the data sets asked for; Beauty only where its folder is there.

    Raises:
        FreshetError: none is there, or a name is not known.
    """
    out = []
    for name in names:
        if name == "movielens":
            home = homes / "movielens-100k"
            out.append(Home("movielens-100k", movielens.fetch(home, say), home, settings, **how))
        elif name == "beauty":
            if BEAUTY.is_dir():
                out.append(Home("amazon-beauty", BEAUTY, homes / "amazon-beauty", settings, **how))
            else:
                say(f"Beauty is left out: {BEAUTY} is not there")
        else:
            raise FreshetError(f"--datasets are movielens and beauty, not {name!r}")
    if not out:
        raise FreshetError("there is no data set to play")
    return out


def quick(folder: Path) -> tuple[Home, list[float], int]:
    """Return a made-up data set, with the tests' language model of a few thousand random weights."""
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
    parser.add_argument("--seeds", default="42", help="of the fits, comma-separated")
    parser.add_argument("--events", type=int, default=0, help="play so many events after the split; 0 = all")
    parser.add_argument("--homes", type=Path, default=ROOT / ".freshet" / "frontier",
                        help="folder with a FRESHET_HOME per data set: movielens-100k, amazon-beauty")
    parser.add_argument("--as-fitted", action="store_true",
                        help="take the home's current model though code has changed since it was fitted")
    parser.add_argument("--cold", action="store_true",
                        help="users of the past start without knowledge, and every policy pays for their first")
    parser.add_argument("--quick", action="store_true", help="a made-up world, in seconds; nothing is written")
    given = parser.parse_args()
    try:
        with Stages() as stages, tempfile.TemporaryDirectory() as scratch:
            budgets, events = [float(x) for x in given.budgets.split(",") if x], given.events
            if given.quick:
                home, budgets, events = quick(Path(scratch))
                homes, seeds = [home], [42]
            else:
                homes = datasets([name.strip() for name in given.datasets.split(",")], given.homes, load(), stages.say,
                                 as_fitted=given.as_fitted, stock=not given.cold)
                seeds = [int(x) for x in given.seeds.split(",")]
            for home in homes:
                points = [point for seed in seeds for point in home.points(seed, budgets, events, stages)]
                comparisons = compared(points)
                text = page.table(points, comparisons)
                print(text)
                if not given.quick:
                    page.write(results(points, comparisons), points, text)
                    stages.say(f"{home.name}: {len(points)} points written to {page.JSON_PATH}")
    except FreshetError as error:
        print(f"frontier: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
