import re

from benchmarks.reference import run


def test_quick_measures_every_change_and_saves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PATH", tmp_path / "reference.json")
    run.main(["--quick"])
    shown = capsys.readouterr().out
    ndcg = {name: float(value) for name, value in re.findall(r"^\| (as used|dim 128) \| (\d\.\d+) \|", shown, re.M)}
    assert set(ndcg) == {"as used", "dim 128"}
    assert all(value > 0 for value in ndcg.values())
    assert not list(tmp_path.iterdir())


def test_a_setting_in_use_has_no_figures():
    points = {"a": [{"change": {}, "ndcg_at_10": 0.1, "nll": 5.0, "epoch": 3.0, "n": 9.0}],
              "b": [{"change": {"dim": 128}, "ndcg_at_10": 0.2, "nll": 4.0, "epoch": 2.0, "n": 9.0}]}
    assert run.table(points).splitlines()[2:] == [
        "| as used | 0.1000 | 5.000 | 3 | – | – | – |", "| dim 128 | – | – | – | 0.2000 | 4.000 | 2 |"]
