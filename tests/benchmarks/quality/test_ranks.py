import numpy as np
import pytest

from benchmarks.quality.ranks import RankBook
from schemas.errors import DataError
from workers.training.evaluate import Predicted

N = 60


def events(n=N, first=0, known=True):
    event = np.arange(first, first + n)
    return Predicted(event, event // 3, np.full(n, known), event % 2 == 0)


def run(system, seed=1, control=None):
    return {"system": system, "control": control, "seed": seed}


def filled(path, dense=9, freshet=0):
    book = RankBook(path)
    for seed in (1, 2):
        book.add(run("dense", seed), events(), np.full(N, dense))
    book.add(run("freshet", 1), events(), np.full(N, freshet))
    return book


def test_ranks_come_back_from_the_file(tmp_path):
    path = tmp_path / "d-p.npz"
    filled(path)
    gain, low, high, seeds = RankBook(path).above(("freshet", None), ("dense", None), [1, 2, 3])
    assert gain == pytest.approx(1 - 1 / np.log2(11))
    assert seeds == 1  # only one of the three seeds has both
    assert (low, high) == pytest.approx((gain, gain))  # the same for every user
    assert RankBook(path).events(("freshet", None), 1) == N
    assert RankBook(path).events(("freshet", None), 2) == 0


def test_a_missing_run_has_no_interval(tmp_path):
    book = filled(tmp_path / "d-p.npz")
    assert book.above(("kar", None), ("dense", None), [1, 2]) is None
    assert book.above(("freshet", "unconstrained"), ("dense", None), [1]) is None
    assert book.lost(("kar", None), ("dense", None), [1]) is None


def test_a_repeated_run_replaces_the_old_one(tmp_path):
    book = filled(tmp_path / "d-p.npz")
    book.add(run("freshet", 1), events(), np.full(N, 40_000))
    difference = book.above(("freshet", None), ("dense", None), [1])
    assert difference.mean == pytest.approx(-1 / np.log2(11))
    assert book.lost(("freshet", None), ("dense", None), [1]) == 1


def test_runs_are_compared_on_the_events_both_have(tmp_path):
    book = RankBook(tmp_path / "d-p.npz")
    shuffled = np.random.default_rng(0).permutation(N)
    whole = events()
    book.add(run("dense"), Predicted(*(column[shuffled] for column in whole)), np.arange(N)[shuffled])
    some = np.array([3, 7, 40])
    book.add(run("freshet"), Predicted(*(column[some] for column in whole)), np.array([0, 0, 0]))
    pair = book.pair(("freshet", None), ("dense", None), 1)
    assert pair.second.tolist() == [3, 7, 40]
    assert pair.user.tolist() == [1, 2, 13]


def test_parts_of_the_events(tmp_path):
    book = RankBook(tmp_path / "d-p.npz")
    known = np.arange(N) < 40
    for system, ranks in (("dense", np.full(N, 5)), ("freshet", np.where(known, 0, 200))):
        book.add(run(system), events()._replace(known=known), ranks)
    sizes = {part: len(book.pair(("freshet", None), ("dense", None), 1, part).user)
             for part in ("all", "known", "unseen", "start", "within")}
    assert sizes == {"all": 60, "known": 40, "unseen": 20, "start": 20, "within": 20}
    assert book.above(("freshet", None), ("dense", None), [1]).mean > 0
    assert book.above(("freshet", None), ("dense", None), [1], "unseen").mean < 0
    assert book.lost(("freshet", None), ("dense", None), [1], "all") == pytest.approx(1 / 3)


def test_seeds_that_differ_widen_the_interval(tmp_path):
    book = RankBook(tmp_path / "d-p.npz")
    random = np.random.default_rng(0)
    for seed, rank in ((1, 0), (2, 3), (3, 8)):
        book.add(run("dense", seed), events(), np.full(N, 9))
        book.add(run("freshet", seed), events(), np.where(random.random(N) < 0.5, rank, 9))
    one, three = (book.above(("freshet", None), ("dense", None), seeds) for seeds in ([1], [1, 2, 3]))
    assert three.seeds == 3
    assert three.high - three.low > 2 * (one.high - one.low)


def test_ranks_of_other_data_are_rejected(tmp_path):
    book = filled(tmp_path / "d-p.npz")
    with pytest.raises(DataError, match="data has changed"):
        book.add(run("lwgr"), events()._replace(user=np.zeros(N, np.int64)), np.zeros(N))
