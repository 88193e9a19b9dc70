import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.scorers import training
from models.scorers.backbone import Backbone

ITEMS, KINDS = 400, 40


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Backbone(ITEMS, 16, 1, 1, 8, 0.0)
    with torch.no_grad():
        kinds = F.normalize(torch.randn(KINDS, 16), dim=1)
        model.items.copy_(kinds[torch.arange(ITEMS) % KINDS] * 2 + 0.3 * torch.randn(ITEMS, 16))
    return model


def test_the_sampled_loss_is_the_loss_over_the_catalogue(model, monkeypatch):
    """Users take items of one kind, so the targets of a window are the items that its states score high."""
    monkeypatch.setattr(training, "FULL", 0)
    monkeypatch.setattr(training, "NEGATIVES", 40)
    rng = np.random.default_rng(0)
    side, difference = model.item_side(), []
    for _ in range(60):
        kind = rng.integers(KINDS, size=12)
        target = torch.from_numpy(np.concatenate([rng.permutation(ITEMS // KINDS)[:6] * KINDS + one for one in kind]))
        window = torch.arange(12).repeat_interleave(6)
        hidden = 2 * F.normalize(side[0][torch.from_numpy(kind)], dim=1).repeat_interleave(6, 0)
        sampled = training._softmax_loss(model, hidden, target, side, torch.ones(ITEMS), window)
        difference.append(float((sampled - F.cross_entropy(model.scores(hidden, side), target)).detach()))
    assert abs(np.mean(difference)) < 0.1  # 0.41 with the weights of other users' targets


def test_targets_of_a_window_are_paired_once():
    window, column = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([4, 4, 1, 0, 3])
    row, at = training._together(window, column, 5)
    assert list(zip(row.tolist(), at.tolist(), strict=True)) == [
        (0, 1), (0, 4), (1, 1), (1, 4), (2, 1), (2, 4), (3, 0), (3, 3), (4, 0), (4, 3)]
