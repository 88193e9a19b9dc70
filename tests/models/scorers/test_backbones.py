"""Scorers from outside the repository: trained and measured, not served, and never mistaken for their older selves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.measuring.protocols import FRESH, stream_time
from models.scorers.backbone import Backbone
from models.scorers.backbones import BACKBONES
from models.systems.context import Context
from models.systems.table import SYSTEMS, System, served_system
from models.systems.training import train
from schemas.errors import FreshetError
from schemas.settings import FitSettings, Settings
from tests.models.planted import chains
from workers.training.evaluate import own_code

SETTINGS = replace(Settings(), fit=FitSettings(dim=16, layers=1, epochs=2, seed=1))


class MeanBackbone(Backbone):
    """The mean of the items so far."""

    def forward(self, history, side=None, at=None):
        vectors = torch.nn.functional.pad((side or self.item_side())[0], (0, 0, 1, 0))
        x = torch.cat([self.start.expand(len(history), 1, -1), torch.nn.functional.embedding(history, vectors)], 1)
        states = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return states if at is None else states.gather(1, at[:, :, None].expand(-1, -1, self.dim))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> System:
    row = System("mean", "the mean of the items so far", backbone="mean")
    monkeypatch.setitem(BACKBONES, "mean", lambda fold, fit, max_len: MeanBackbone(
        fold.n_items, fit.dim, 0, fit.heads, max_len, fit.dropout, fold.fresh()))
    monkeypatch.setitem(SYSTEMS, "mean", row)
    return row


def test_it_is_trained_and_ranks_the_events_of_all_rows(own: System) -> None:
    def kept(stage, start, fold, settings, train):
        assert type(start) is Backbone, "the cache does not know the code of others"
        return train()

    data = chains()
    context = Context(data, stream_time(data), SETTINGS, lambda: pytest.fail("no language model is needed"), keep=kept)
    outcome = train(own, None, context).rank(FRESH)
    assert outcome.ranks.rows.tolist() == outcome.reference.rows.tolist()
    # 3 epochs of the extension: it learns; a scorer that did not would have the median rank of the catalogue
    assert (outcome.ranks.rank < len(data.items) // 2).mean() > 0.6


def test_it_cannot_be_served(own: System) -> None:
    with pytest.raises(FreshetError, match="for comparison and cannot be served"):
        served_system("mean")
    assert not own.needs_llm


def test_the_key_of_a_result_has_the_code_of_the_backbone(own: System, monkeypatch, tmp_path: Path) -> None:
    before = own_code("mean")
    assert own_code("dense") == []
    other = tmp_path / "other.py"
    other.write_text("x = 1")
    monkeypatch.setattr("inspect.getfile", lambda _: str(other))
    assert len(before) == 1
    assert own_code("mean") != before
