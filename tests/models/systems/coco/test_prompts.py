import copy

import pytest
import torch

from models.knowledge import training
from models.knowledge.composition import Composed
from models.knowledge.objectives import Judged, Losses, Objective
from models.knowledge.sources import moments_at
from models.language.item_cache import ItemCache
from models.measuring.protocols import stream_time
from models.scorers.training import train_reference
from models.systems.coco.prompts import Codebook, GatedFusion, PromptSource
from schemas.settings import FitSettings
from tests.models import tiny
from tests.models.planted import chains

FIT = FitSettings(dim=16, layers=1, dropout=0.1, epochs=3, knowledge_epochs=2, instructions=3, codes=6, seed=1)


@pytest.fixture(scope="module")
def data():
    return chains(users=20)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    llm = tiny.load(tmp_path_factory.mktemp("llm"))
    cache = ItemCache.build(llm, data.texts, tmp_path_factory.mktemp("cache"), None, 8)
    split = stream_time(data)
    reference, _ = train_reference(split.fold, FIT, 10)
    return llm, cache, split, reference


def composed(made):
    llm, cache, _, reference = made
    torch.manual_seed(0)
    source = PromptSource(16, 3, 6, cache, llm, 4)
    model = Composed(copy.deepcopy(reference), reference, source, GatedFusion(16))
    torch.nn.init.normal_(model.fusion.out.weight, std=0.3)  # so that knowledge has an effect and can do harm
    return model


def train(made, model, objective, monkeypatch, epochs=2):
    monkeypatch.setattr("models.knowledge.judging.JUDGED", 50)
    plan = training.TrainingPlan(epochs, objective, seed=2, none_is_an_epoch=False, snapshots=48)
    return training.train(model, made[2].fold, plan)


def test_the_codebook_is_straight_through_and_restarts_dead_codewords():
    torch.manual_seed(0)
    book = Codebook(8, 2, 5)
    user = torch.randn(4, 8, requires_grad=True)
    words, loss = book(user)
    for word in words.flatten(0, 1):
        assert (book.words - word).abs().sum(1).min() < 1e-5
    words.sum().backward()
    assert book.project.grad.abs().sum() > 0
    assert loss > 0
    with torch.no_grad():
        book.words[1:] = 1e3  # far from all users
        book.usage[1:] = 0
    for _ in range(25):
        book(torch.randn(4, 8))
    assert (book.words.abs() < 100).all()


def test_lora_learns_from_contradicted_events_only(made, monkeypatch):
    llm = made[0]
    model = composed(made)
    before = [weight.detach().clone() for weight in model.source.masked()]
    train(made, model, Objective(), monkeypatch)  # the plain loss does not train masked weights
    assert all(torch.equal(a, b) for a, b in zip(before, model.source.masked(), strict=True))
    model = composed(made)
    about = train(made, model, Judged(), monkeypatch)
    assert model.source.log()["lora_norm"] > 0
    rates = [entry["trigger_rate"] for entry in about["history"][1:]]
    assert all(0 < rate < 1 for rate in rates)
    assert llm.adapter is None  # the shared model is unchanged
    model = composed(made)
    train(made, model, Judged(gamma=1e9), monkeypatch)
    assert model.source.log()["lora_norm"] == 0
    model = composed(made)
    train(made, model, Judged(), monkeypatch, epochs=1)
    assert model.source.log()["lora_norm"] == 0  # LoRA is not trained in the first epoch


def test_the_adapter_is_active_in_this_source_only(made):
    llm, _, split, _ = made
    model = composed(made).eval()
    rows = split.rows()[:3]
    at = moments_at(split.test, rows, torch.randn(3, 16), 4)
    plain = model.source(at)
    with torch.no_grad():
        for weight in model.source.masked()[1::2]:
            weight.normal_()
    assert not torch.allclose(model.source(at), plain)
    assert llm.adapter is None


def test_the_judge_by_hand():
    objective = Judged()
    losses = Losses(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert objective.loss(losses) == pytest.approx(3.5)
    assert objective.masked(losses) is None
    objective.after_epoch(0.0)
    assert objective.masked(losses) == pytest.approx(2.0)  # the one contradicted event
    assert objective.log() == {"trigger_rate": 0.5}
