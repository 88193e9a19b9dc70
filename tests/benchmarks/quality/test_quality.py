import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import page, plot
from benchmarks.quality import run as quality
from benchmarks.quality.ranks import Difference
from models.systems.table import SYSTEMS
from schemas.errors import FreshetError


def entry(system="dense", control=None, seed=1, value=0.1):
    return {"dataset": "d", "protocol": "stream_time", "system": system, "control": control, "seed": seed,
            "metrics": dict.fromkeys(page.METRICS, value), "seconds": 1.0, "revision": "r"}


def test_a_repeated_run_replaces_the_old_one(tmp_path):
    path = tmp_path / "quality.json"
    quality.save(path, [entry(), entry(control="extra-steps")])
    quality.save(path, [entry(value=0.2), entry(seed=2)])
    runs = json.loads(path.read_text())
    assert len(runs) == 3
    assert {run["metrics"]["ndcg_at_5"] for run in runs if run["control"] is None and run["seed"] == 1} == {0.2}
    assert set(runs[0]) == {"dataset", "protocol", "system", "control", "seed", "metrics", "seconds", "revision"}


def test_runs_cover_all_systems_controls_seeds_and_protocols():
    choice = quality.Choice(tuple(SYSTEMS), "all", ("stream_time", "leave_one_out"), (1, 2))
    runs = list(choice.runs())
    assert len(set(runs)) == len(runs) == 4 * sum(1 + len(system.controls()) for system in SYSTEMS.values())
    first = list(replace(choice, controls="first").runs())
    assert {run.seed for run in first if run.control} == {1}
    with pytest.raises(FreshetError, match="available: dense"):
        quality.names("dens", tuple(SYSTEMS), "system")
    assert quality.names("leave-one-out", ("leave_one_out",), "protocol") == ("leave_one_out",)


def test_plots_are_drawn(tmp_path):
    plot.draw([entry(), entry(seed=2), entry("lwgr", "unconstrained")], tmp_path / "a.svg")
    history = [{"epoch": float(at), "constraint": 0.1, "allowed": 0.05, "lagrange": 1.0} for at in range(3)]
    plot.draw_training([entry("lwgr") | {"training": {"history": history}}], tmp_path / "b.svg")
    assert all("<svg" in (tmp_path / name).read_text() for name in ("a.svg", "b.svg"))
    plot.draw_training([entry() | {"training": {}}], tmp_path / "c.svg")
    assert not (tmp_path / "c.svg").exists()


def test_tables_include_all_saved_runs(tmp_path):
    runs = [entry(seed=seed) for seed in (1, 2)] + [entry("freshet", seed=seed, value=0.2) for seed in (1, 2)]
    quality.save(tmp_path / "quality.json", runs)
    book = quality.book(tmp_path, "d", "stream_time")
    for run in runs:
        rank = np.where(np.arange(40) % 2, 3, 500) if run["system"] == "dense" else np.zeros(40)
        book.add(run, np.arange(40), np.arange(40), rank)
    text = quality.tables(tmp_path)["d"]
    assert "stream-time** (40 events predicted)" in text
    freshet = next(line for line in text.splitlines() if line.startswith("| `freshet`"))
    assert "| 2 | .2000 ± .0000 |" in freshet
    assert "| +0.78" in freshet


def test_a_table_shows_means_deviations_and_intervals():
    row = {"protocol": "stream_time", "system": "lwgr", "control": "unconstrained", "seeds": 2, "n": 30,
           "gain": Difference(0.01, 0.002, 0.018, 1)}
    row |= dict.fromkeys(page.METRICS, 0.25) | {f"{name}_sd": 0.01 for name in page.METRICS}
    text = page.table("a", [row])
    assert "| `lwgr`, unconstrained | 2 | .2500 ± .0100 |" in text
    assert "+0.0100 [+0.0020, +0.0180] (1 of 2 seeds) | – | 25.0% |" in text
    row["gain"] = Difference(-0.00001, -0.00002, 0.0, 2)
    assert "| +0.0000 [+0.0000, +0.0000] |" in page.table("a", [row])
