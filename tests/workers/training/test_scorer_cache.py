from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data.fold import Fold
from models.data.sequences import Sequences
from models.scorers.training import extend, train_fused, train_reference
from schemas.settings import FitSettings
from workers.training.scorer_cache import ScorerCache

ITEMS, USERS = 20, 25
SETTINGS = FitSettings(dim=16, layers=1, epochs=2, device="cpu")


@pytest.fixture
def fold():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    item = rng.integers(0, ITEMS, offsets[-1])
    return Fold(Sequences(item, np.arange(len(item)), offsets), offsets[1:] - 1, ITEMS)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_scorer_is_trained_once(fold, tmp_path, monkeypatch):
    shelf = ScorerCache(tmp_path / "scorers")
    plain, found = train_reference(fold, SETTINGS, 8)
    first, _ = train_reference(fold, SETTINGS, 8, keep=shelf)
    longer = extend(first, fold, SETTINGS, keep=shelf)
    with monkeypatch.context() as patch:
        patch.setattr("models.scorers.epochs.run_epoch", lambda *_: pytest.fail("trained again"))
        again, about = train_reference(fold, SETTINGS, 8, keep=shelf)
        assert same(extend(again, fold, SETTINGS, keep=shelf), longer)
    assert same(plain, first)
    assert same(first, again)
    assert not same(first, longer)
    assert {name: value for name, value in about.items() if name != "seconds"} == {
        name: value for name, value in found.items() if name != "seconds"}
    assert not any(weight.requires_grad for weight in again.parameters())


def test_the_cache_key_depends_on_everything_that_affects_weights(fold, tmp_path):
    shelf = ScorerCache(tmp_path)
    text = torch.randn(ITEMS, 4)
    events = replace(fold.sequences, item=fold.sequences.item[::-1].copy())
    other = Fold(events, fold.begin, ITEMS)
    train_reference(fold, SETTINGS, 8, keep=shelf)
    for changed in (replace(SETTINGS, seed=1), replace(SETTINGS, dropout=0.5), replace(SETTINGS, epochs=3)):
        train_reference(fold, changed, 8, keep=shelf)
    train_reference(other, SETTINGS, 8, keep=shelf)
    train_reference(fold, SETTINGS, 6, keep=shelf)
    train_fused(fold, text, SETTINGS, 8, keep=shelf)
    train_fused(fold, text + 1, SETTINGS, 8, keep=shelf)
    tied = np.arange(len(events.item)) // 2 * 2
    train_reference(Fold(replace(fold.sequences, tie=tied), fold.begin, ITEMS), SETTINGS, 8, keep=shelf)
    assert len(list(tmp_path.glob("trained-*.safetensors"))) == 9
    train_reference(fold, replace(SETTINGS, harm=0.1, codes=8), 8, keep=shelf)  # no effect on scorers
    assert len(list(tmp_path.iterdir())) == 9


def test_a_damaged_file_is_replaced(fold, tmp_path):
    shelf = ScorerCache(tmp_path)
    first, _ = train_reference(fold, SETTINGS, 8, keep=shelf)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    again, _ = train_reference(fold, SETTINGS, 8, keep=shelf)
    assert same(first, again)
    assert path.stat().st_size > 1000
