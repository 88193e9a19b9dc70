import numpy as np
import pytest

from benchmarks.quality.ranks import RankBook
from schemas.errors import DataError

ROWS, USERS = np.arange(60), np.arange(60) // 3


def run(system, seed=1, control=None):
    return {"system": system, "control": control, "seed": seed}


def filled(path, dense=9, freshet=0):
    book = RankBook(path)
    for seed in (1, 2):
        book.add(run("dense", seed), ROWS, USERS, np.full(60, dense))
    book.add(run("freshet", 1), ROWS, USERS, np.full(60, freshet))
    return book


def test_ranks_come_back_from_the_file(tmp_path):
    path = tmp_path / "d-p.npz"
    filled(path)
    gain, low, high, seeds = RankBook(path).above(("freshet", None), ("dense", None), [1, 2, 3])
    assert gain == pytest.approx(1 - 1 / np.log2(11))
    assert seeds == 1  # only one of the three seeds has both
    assert (low, high) == pytest.approx((gain, gain))  # the same for every user
    assert RankBook(path).events(("freshet", None), 1) == 60
    assert RankBook(path).events(("freshet", None), 2) == 0


def test_a_missing_run_has_no_interval(tmp_path):
    book = filled(tmp_path / "d-p.npz")
    assert book.above(("kar", None), ("dense", None), [1, 2]) is None
    assert book.above(("freshet", "unconstrained"), ("dense", None), [1]) is None


def test_a_repeated_run_replaces_the_old_one(tmp_path):
    book = filled(tmp_path / "d-p.npz")
    book.add(run("freshet", 1), ROWS, USERS, np.full(60, 40_000))
    difference = book.above(("freshet", None), ("dense", None), [1])
    assert difference.mean == pytest.approx(-1 / np.log2(11))


def test_runs_are_compared_on_the_events_both_have(tmp_path):
    book = filled(tmp_path / "d-p.npz")
    book.add(run("dense", 1), np.arange(90), np.arange(90) // 3, np.full(90, 200))
    assert book.above(("freshet", None), ("dense", None), [1]).mean == pytest.approx(1 - 1 / np.log2(11))


def test_ranks_of_other_data_are_rejected(tmp_path):
    book = filled(tmp_path / "d-p.npz")
    with pytest.raises(DataError, match="data has changed"):
        book.add(run("lwgr"), ROWS, USERS + 1, np.zeros(60))
