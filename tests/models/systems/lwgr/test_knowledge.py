from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.systems.lwgr.knowledge import KnowledgeModel
from schemas.settings import FitSettings
from tests.models import tiny

TEXTS = [f"thing {index} of {'red' if index % 2 else 'blue'}" for index in range(20)]
SETTINGS = FitSettings(dim=8, codes=6, instructions=3)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny.load(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def cache(llm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ItemCache:
    return ItemCache.build(llm, TEXTS, tmp_path_factory.mktemp("items"), item_tokens=20)


@pytest.fixture
def model(llm: LanguageModel) -> KnowledgeModel:
    torch.manual_seed(0)
    return KnowledgeModel.create(SETTINGS, llm).eval()


def batch(users: int = 6) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(TEXTS), (users, 5))
    rows[0] = -1  # a user without a history
    rows[1, :3] = -1
    return torch.from_numpy(rng.normal(size=(users, 8)).astype(np.float32)), rows


def test_vectors_are_bounded_and_follow_the_history(
    model: KnowledgeModel, cache: ItemCache, llm: LanguageModel,
) -> None:
    hidden, rows = batch()
    out = model(hidden, torch.from_numpy(rows), cache, llm).detach()
    assert out.shape == (6, 3, 8)
    assert bool(torch.isfinite(out).all())
    assert float(out.norm(dim=-1).max()) < 1
    other = rows.copy()
    other[2, 0] = (rows[2, 0] + 1) % len(TEXTS)
    moved = (model(hidden, other, cache, llm).detach() - out).flatten(1).norm(dim=-1)
    assert float(moved[2]) > 1e-4
    assert float(moved[[0, 1, 3, 4, 5]].max()) < 1e-5


def test_order_of_the_history_matters(model: KnowledgeModel, cache: ItemCache, llm: LanguageModel) -> None:
    hidden, rows = batch()
    turned = model(hidden[2:], rows[2:, ::-1].copy(), cache, llm) - model(hidden[2:], rows[2:], cache, llm)
    assert float(turned.detach().norm()) > 1e-3


def test_padding_and_batch_have_no_effect(model: KnowledgeModel, cache: ItemCache, llm: LanguageModel) -> None:
    hidden, rows = batch()
    together = model(hidden, rows, cache, llm)
    padded = np.full((6, 9), -1)
    padded[:, [0, 2, 3, 6, 8]] = rows
    torch.testing.assert_close(model(hidden, padded, cache, llm), together, rtol=1e-4, atol=1e-5)
    for user in range(6):
        alone = model(hidden[user : user + 1], rows[user : user + 1], cache, llm)
        torch.testing.assert_close(alone[0], together[user], rtol=1e-4, atol=1e-5)
    assert model(hidden, np.zeros((6, 0), np.int64), cache, llm).shape == (6, 3, 8)


def test_gradients_reach_instructions_and_users_not_the_language_model(
    model: KnowledgeModel, cache: ItemCache, llm: LanguageModel,
) -> None:
    hidden, rows = batch()
    hidden.requires_grad_()
    model.train()(hidden, rows, cache, llm).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert bool(torch.isfinite(weight.grad).all()), name
        assert float(weight.grad.norm()) > 0, name
    assert hidden.grad is not None
    assert float(hidden.grad.norm()) > 0
    assert all(weight.grad is None for weight in llm.causal.parameters())


def test_learns_to_distinguish_histories(cache: ItemCache, llm: LanguageModel) -> None:
    """Learns from texts alone which users take red things and which take blue ones."""
    torch.manual_seed(0)
    model = KnowledgeModel.create(SETTINGS, llm).train()
    rng = np.random.default_rng(1)
    rows = 2 * rng.integers(0, len(TEXTS) // 2, (32, 4)) + np.arange(32)[:, None] % 2
    label = torch.from_numpy(np.arange(32) % 2).float()
    head = torch.nn.Linear(24, 1)
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(40):
        logit = head(model(torch.zeros(32, 8), rows, cache, llm).flatten(1))[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.2  # ln 2 = 0.69 before training


def test_generate_equals_forward_in_chunks(model: KnowledgeModel, cache: ItemCache, llm: LanguageModel) -> None:
    hidden, rows = batch()
    made = model.train().generate(hidden, rows, cache, llm, batch=4)
    assert model.training
    expected = model.eval()(hidden, rows, cache, llm).detach().numpy()
    np.testing.assert_allclose(made.vectors, expected, rtol=1e-4, atol=1e-5)
    assert made.vectors.dtype == np.float32
    assert made.finite.all()
    np.testing.assert_array_equal(made.codes, model.codes(hidden).numpy())
    nobody = model.generate(hidden[:0], rows[:0], cache, llm)
    assert nobody.vectors.shape == (0, 3, 8)
    assert nobody.finite.shape == (0,)


def test_out_of_memory_halves_the_batch(
    model: KnowledgeModel, cache: ItemCache, llm: LanguageModel, monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, rows = batch()
    expected = model.generate(hidden, rows, cache, llm).vectors
    sizes: list[int] = []
    history = cache.history

    def small(histories: np.ndarray) -> object:
        sizes.append(len(histories))
        if len(histories) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return history(histories)

    monkeypatch.setattr(cache, "history", small)
    made = model.generate(hidden, rows, cache, llm, batch=8)
    np.testing.assert_allclose(made.vectors, expected, rtol=1e-4, atol=1e-5)
    assert sizes == [6, 4, 2, 2, 2]

    def none(histories: np.ndarray) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cache, "history", none)
    with pytest.raises(torch.OutOfMemoryError):
        model.generate(hidden, rows, cache, llm)


def test_nan_is_reported_for_its_user_only(model: KnowledgeModel, cache: ItemCache, llm: LanguageModel) -> None:
    hidden, rows = batch()
    hidden[3] = float("nan")
    made = model.generate(hidden, rows, cache, llm)
    assert made.finite.tolist() == [True, True, True, False, True, True]
    assert not made.vectors[3].any()


def test_saving_and_loading_changes_nothing(
    model: KnowledgeModel, cache: ItemCache, llm: LanguageModel, tmp_path: Path,
) -> None:
    hidden, rows = batch()
    save_file(model.state_dict(), tmp_path / "knowledge.safetensors")
    other = KnowledgeModel(SETTINGS.dim, llm.hidden_size, SETTINGS.instructions, SETTINGS.codes)
    other.load_state_dict(load_file(tmp_path / "knowledge.safetensors"))
    torch.testing.assert_close(other.eval()(hidden, rows, cache, llm), model(hidden, rows, cache, llm))
