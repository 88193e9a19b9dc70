from __future__ import annotations

import pytest
import torch

from benchmarks.rank.run import agreement, main
from benchmarks.rank.world import model, requests
from models.trust.lists import lists


def test_all_rows_are_measured_and_the_lists_are_those_of_double_precision(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick"])
    out = capsys.readouterr().out
    assert all(f"| {row} |" in out for row in (
        "two matrix products", "Freshet, behaviour alone", "Freshet, knowledge and trust region"))
    assert "recall@10 against double precision 1.0000" in out


def test_a_wrong_list_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ranking, pool = model(500), requests(500, 4)
    assert agreement(500, ranking, pool)["recall@10"] == 1.0
    monkeypatch.setattr("benchmarks.rank.run.lists", lambda ref, fused, radius, top: lists(ref, ref, radius, top))
    assert agreement(500, ranking, pool)["recall@10"] < 1.0


def test_sizes_must_be_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--items", "many"])
    assert "--items takes numbers" in capsys.readouterr().err
