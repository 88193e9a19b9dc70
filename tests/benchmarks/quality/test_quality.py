import json

import numpy as np
import pytest

from benchmarks.quality import page, plot
from benchmarks.quality import run as quality
from benchmarks.quality.ranks import Difference
from models.systems.table import SYSTEMS
from schemas.errors import FreshetError
from workers.training.evaluate import Predicted

COUNTS = {"n_all": 40, "n_known": 30, "n_unseen": 10, "n_start": 20, "n_within": 10}


def entry(system="dense", control=None, seed=1, value=0.1, ties="strict", counts=COUNTS):
    return {"dataset": "d", "protocol": "stream_time", "ties": ties, "system": system, "control": control, "seed": seed,
            "metrics": dict.fromkeys(page.METRICS, value), "more": dict.fromkeys(page.MORE, value / 2),
            "counts": counts, "seconds": 1.0, "revision": "r"}


def events(n=40):
    return Predicted(np.arange(n), np.arange(n), np.arange(n) < 30, np.arange(n) < 20)


def test_a_repeated_run_replaces_the_old_one(tmp_path):
    path = tmp_path / "quality.json"
    quality.save(path, [entry(), entry(control="extra-steps")])
    quality.save(path, [entry(value=0.2), entry(seed=2), entry(ties="file")])
    runs = json.loads(path.read_text())
    assert len(runs) == 4
    assert {run["metrics"]["ndcg_at_5"] for run in runs
            if (run["control"], run["seed"], run["ties"]) == (None, 1, "strict")} == {0.2}


def test_an_entry_has_the_headline_and_what_stands_beside_it():
    figures = {"ndcg_at_10": 0.3, "recall_at_10": 0.5, "n": 7.0}
    parts = {"items": dict.fromkeys(("all", "known", "unseen"), figures),
             "sessions": dict.fromkeys(("start", "within"), figures)}
    made = page.entry({"metrics": dict.fromkeys([*page.METRICS, "other"], 0.1), "by": parts})
    assert made["metrics"] == dict.fromkeys(page.METRICS, 0.1)
    assert made["more"] == {"all": 0.3, "all_recall": 0.5, "unseen": 0.3, "start": 0.3, "within": 0.3}
    assert set(made["counts"].values()) == {7}


def test_runs_cover_all_rows_seeds_protocols_and_ties():
    rows = quality.chosen_rows("all")
    assert len(rows) == len(set(rows)) == sum(1 + len(system.controls()) for system in SYSTEMS.values())
    choice = quality.Choice(rows, ("stream_time", "leave_one_out"), ("strict", "file"), (1, 2), 4000)
    runs = list(choice.runs())
    assert len(set(runs)) == len(runs)
    assert {run.events for run in runs if quality.cheap(run.system)} == {None}
    assert {(run.events, run.ties) for run in runs if not quality.cheap(run.system)} == {(4000, "strict")}
    cheap = quality.chosen_rows("cheap")
    assert ("evidence", "words") in cheap
    assert ("dense", None) in cheap
    assert not any(SYSTEMS[system].needs_llm for system, _ in cheap)
    assert quality.chosen_rows("dense, evidence/words") == (("dense", None), ("evidence", "words"))
    with pytest.raises(FreshetError, match="there are dense"):
        quality.chosen_rows("dens")
    with pytest.raises(FreshetError, match="no control 'wrods'"):
        quality.chosen_rows("evidence/wrods")
    with pytest.raises(FreshetError, match="available: strict"):
        quality.names("strickt", ("strict", "file"), "ties")
    assert quality.names("leave-one-out", ("leave_one_out",), "protocol") == ("leave_one_out",)


def test_plots_are_drawn(tmp_path):
    plot.draw([entry(), entry(seed=2), entry("lwgr", "unconstrained"), entry(ties="file")], tmp_path / "a.svg")
    history = [{"epoch": float(at), "constraint": 0.1, "allowed": 0.05, "lagrange": 1.0} for at in range(3)]
    plot.draw_training([entry("lwgr") | {"training": {"history": history}}], tmp_path / "b.svg")
    assert all("<svg" in (tmp_path / name).read_text() for name in ("a.svg", "b.svg"))
    plot.draw_training([entry() | {"training": {}}], tmp_path / "c.svg")
    assert not (tmp_path / "c.svg").exists()


def test_tables_include_all_saved_runs(tmp_path):
    base = "dense+evidence"
    runs = [entry(system, seed=seed, value=value) for system, value in (("evidence", 0.1), ("freshet", 0.2))
            for seed in (1, 2)]
    quality.save(tmp_path / "quality.json", [*runs, entry("evidence", ties="file", value=0.6)])
    book = quality.book(tmp_path, "d", "stream_time", "strict")
    for run in runs:
        rank = np.where(np.arange(40) % 2, 3, 500) if run["system"] == "evidence" else np.zeros(40)
        book.add(run, events(), rank)
        book.add(run | {"system": base}, events(), np.zeros(40))
    text = quality.tables(tmp_path)["d"]
    assert "stream-time** (40 events, 30 of them on known items, 20 of these at session starts)" in text
    freshet = next(line for line in text.splitlines() if line.startswith("| `freshet`"))
    assert "| `freshet` | 2 | .2000 ± .0000 |" in freshet
    assert "| +0.0000 [+0.0000, +0.0000] | – | 0.0% |" in freshet
    evidence = next(line for line in text.splitlines() if line.startswith("| `evidence`"))
    assert "| 50.0% |" in evidence  # hits lost
    assert "| -0.78" in evidence
    lines = quality.compared(tmp_path, ("freshet", None), ("evidence", None))
    assert lines[0].startswith("d, stream-time: NDCG@10 +0.78")
    assert quality.compared(tmp_path, ("freshet", None), ("kar", None)) == []
    assert evidence.endswith("| .3000 ± .0000 | .3000 ± .0000 |")  # with the file's ties


def test_a_table_shows_means_deviations_and_intervals():
    row = {"protocol": "stream_time", "system": "lwgr", "control": "unconstrained", "seeds": 2, "counts": COUNTS,
           "gain": Difference(0.01, 0.002, 0.018, 1), "behind": None, "lost": 0.125}
    for name in (*page.METRICS, *page.MORE):
        row |= {name: 0.25, f"{name}_sd": 0.01}
    row |= {"file_all": None, "file_all_sd": 0.0, "file_all_recall": None, "file_all_recall_sd": 0.0}
    whole = row | {"system": "dense", "control": None, "counts": COUNTS | {"n_all": 80}}
    text = page.table("a", [whole, row])
    assert "| `lwgr`, unconstrained ‡ | 2 | .2500 ± .0100 |" in text
    assert "rows marked ‡ predict a fixed sample of 40" in text
    assert "+0.0100 [+0.0020, +0.0180] (1 of 2 seeds) | – | 12.5% | 25.0% | – | – |" in text
    row["gain"] = Difference(-0.00001, -0.00002, 0.0, 2)
    assert "| +0.0000 [+0.0000, +0.0000] |" in page.table("a", [row])
    day = page.table("a", [row | {"counts": COUNTS | {"n_within": 0}}])
    assert "all at session starts" in day
    assert "| within |" not in day
