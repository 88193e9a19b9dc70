"""Knowledge that tells the next item is learned by every fusion; knowledge that tells nothing does no harm."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.data.fold import Fold
from models.knowledge.composition import Composed
from models.knowledge.judging import Held, better, judge, others, standard_error
from models.knowledge.objectives import Judged, Objective, PrimalDual
from models.knowledge.training import BATCH, TrainingPlan, train
from models.measuring.protocols import FRESH
from models.scorers.backbone import Backbone
from models.scorers.fusion import KnowledgeAttention
from models.scorers.training import train_reference
from models.systems.coco.prompts import GatedFusion
from models.systems.grasp.holistic import ConcatFusion, HolisticSource
from schemas.settings import FitSettings
from tests.models.knowledge.planted_knowledge import Foretold, Planted
from tests.models.planted import chains, lottery

DIM = 16
FUSIONS = {
    "concat-1": (1, lambda: ConcatFusion(DIM, 1), Objective),
    "gated": (1, lambda: GatedFusion(DIM), Judged),
    "start-attention": (3, lambda: KnowledgeAttention(DIM, 2), PrimalDual),
}


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("models.knowledge.training.LEARNING_RATE", 5e-3)  # a hundred steps, not thousands


@pytest.fixture(scope="module")
def world():
    """A fold, what comes in it, and a reference that has learned what there is to learn: nothing."""
    data, coming = lottery()
    fold = Fold.of(data.events, len(data.users), len(data.items))
    fit = FitSettings(dim=DIM, layers=1, dropout=0.1, epochs=1, seed=1, device="cpu")
    return fold, coming, train_reference(fold, fit, 12)[0]


def composed(world, fusion, table, source=None, snapshots=128):
    _fold, _, reference = world
    vectors, make, _ = FUSIONS.get(fusion, (3, lambda: ConcatFusion(DIM, 3), Objective))
    torch.manual_seed(0)
    return Composed(
        copy.deepcopy(reference).requires_grad_(True), reference, source or Planted(table, vectors, DIM, snapshots),
        make())


def trained(world, model, objective, trains_backbone=True):
    plan = TrainingPlan(2, objective(), trains_backbone=trains_backbone, seed=1)
    return train(model, world[0], plan)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_foreknowledge_is_learned(world, fusion):
    model = composed(world, fusion, world[1], snapshots=768)
    found = trained(world, model, FUSIONS[fusion][2])
    assert found["epoch"] > 0
    assert found["own_gain"] > 0.02  # nats over another user's
    assert found["gain"] > 0.02
    assert found["ndcg_gain"] > 0


def test_foreknowledge_is_learned_by_holistic_attention(world):
    fold, coming, _ = world
    rng = np.random.default_rng(0)
    cache = SimpleNamespace(embeddings=rng.normal(size=(fold.n_items, 8)).astype(np.float32))
    described = Foretold(cache, fold.sequences, coming)
    torch.manual_seed(0)
    source = HolisticSource(fold.training(), described, 4, DIM)
    source.snapshots = 1024
    found = trained(world, composed(world, "concat-3", None, source), Objective)
    assert found["epoch"] > 0
    assert found["own_gain"] > 0.02
    assert found["ndcg_gain"] > 0


@pytest.mark.parametrize("trains_backbone", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_zero_knowledge_stays_at_the_start(world, fusion, trains_backbone):
    fold, coming, reference = world
    model = composed(world, fusion, 0 * coming)
    found = trained(world, model, FUSIONS[fusion][2], trains_backbone)
    assert found["epoch"] == 0
    for name, weight in reference.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], weight)
    for entry in found["history"]:  # it moves neither likelihood nor order, at any time
        assert abs(entry["knowledge_gain"]) < 1e-6
        assert entry["ndcg_at_10"] == entry["ndcg_at_10_without_knowledge"]
        assert trains_backbone or abs(entry["gain"]) < 1e-6
    ranks = model.rank(fold.sequences, fold.begin, FRESH)
    model.fusion = None
    np.testing.assert_allclose(ranks.logp, model.rank(fold.sequences, fold.begin, FRESH).logp, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_knowledge_of_chance_is_not_learned(world, fusion):
    table = np.random.default_rng(1).normal(size=world[1].shape).astype(np.float32)
    found = trained(world, composed(world, fusion, table), FUSIONS[fusion][2])
    assert found["gain"] <= 0.02
    assert found["ndcg_gain"] > -0.02


def test_a_sharper_scorer_is_no_better_and_no_worse():
    """What broke: the start was tempered on held-out events, its successors were not."""
    data = chains()
    fold = Fold.of(data.events, len(data.users), len(data.items))
    fit = FitSettings(dim=DIM, layers=1, dropout=0.1, epochs=6, seed=1, device="cpu")
    reference = train_reference(fold, fit, 12)[0]
    model = Composed(copy.deepcopy(reference), reference, None, None)
    held = Held.of(fold, model, BATCH, np.random.default_rng(0))
    start = judge(model, held)
    assert 0.7 < start.factor < 1.4  # `temper` has found about the same
    with torch.no_grad():
        model.backbone.scale.mul_(1.3)
    sharper = judge(model, held)
    assert abs(sharper.figures(start)["gain"]) < 3e-3
    assert sharper.factor * 1.3 == pytest.approx(start.factor, rel=0.02)
    np.testing.assert_array_equal(start.ndcg, sharper.ndcg)


def test_temperatures_are_fitted_on_other_users(world):
    fold, coming, _ = world
    model = composed(world, "gated", coming)
    held = Held.of(fold, model, BATCH, np.random.default_rng(0))
    rows = np.concatenate(held.chunks)
    assert len(np.unique(rows)) == len(rows)
    events = judge(model, held).user
    later = np.arange(len(fold.sequences.item)) >= np.repeat(fold.begin, fold.sequences.lengths())
    assert len(events) == (later & fold.sequences.with_history()).sum()
    assert 0.3 < held.half[events].mean() < 0.7


def test_gains_need_more_than_chance():
    user = np.repeat(np.arange(50), 4)
    gain = np.repeat(np.random.default_rng(0).normal(size=50), 4)  # four events of a user are one observation
    assert standard_error(user, gain) == pytest.approx(gain.std() / 50**0.5, rel=1e-6)
    sure = dict.fromkeys(("gain", "own_gain", "knowledge_gain", "ndcg_gain"), 1.0) | {
        f"{name}_error": 0.5 for name in ("gain", "own_gain", "knowledge_gain", "ndcg_gain")}
    assert better(sure, knows=True)
    assert not better(sure | {"own_gain": 0.4}, knows=True)  # as good with another user's knowledge
    assert better(sure | {"own_gain": 0.4}, knows=False)
    assert not better(sure | {"knowledge_gain": 0.0}, knows=True)
    assert not better(sure | {"ndcg_gain": -0.6}, knows=True)


def test_another_users_knowledge_is_never_ones_own():
    user = np.array([3, 3, 5, 3, 7])
    found = others(user).numpy()
    assert (user[found] != user).all()
    assert others(np.array([2, 2])).tolist() == [0, 1]  # there is no other user


def test_scales_return_after_training(world):
    model = composed(world, "gated", 0 * world[1])
    model.backbone.scale.fill_(0.7)
    before = float(model.reference.scale)
    trained(world, model, Objective)
    assert float(model.backbone.scale) == pytest.approx(0.7)
    assert float(model.reference.scale) == before
    assert isinstance(model.backbone, Backbone)
