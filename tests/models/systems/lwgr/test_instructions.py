from __future__ import annotations

import pytest
import torch

from models.systems.lwgr.instructions import Instructions


@pytest.fixture
def module() -> Instructions:
    torch.manual_seed(0)
    return Instructions(dim=6, hidden=12, instructions=3, codes=5, norm=7.0, code_dim=4)


def test_tokens_have_the_norm_of_the_language_model(module: Instructions) -> None:
    tokens = module.eval()(torch.randn(4, 6))
    assert tokens.shape == (4, 3, 12)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.full((4, 3), 7.0))


def test_forward_uses_the_nearest_codeword(module: Instructions) -> None:
    hidden = torch.randn(4, 6)
    codes = module.codes(hidden)
    for user in range(4):
        for k in range(3):
            unit = torch.nn.functional.normalize(hidden[user] @ module.project[k], dim=0)
            book = torch.nn.functional.normalize(module.codebooks[k], dim=-1)
            assert codes[user, k] == (book - unit).norm(dim=-1).argmin()
            token = torch.nn.functional.normalize(book[codes[user, k]] @ module.expand[k], dim=0) * 7
            torch.testing.assert_close(module.eval()(hidden)[user, k], token)


def test_gradient_follows_the_soft_choice_and_reaches_every_codeword(module: Instructions) -> None:
    """e = onehot − sg[p] + p (LWGR): the value is the hard choice, the gradient by α is that of p, by C that of e."""
    hidden = torch.randn(4, 6)
    weights = torch.randn(4, 3, 12)
    (module.eval()(hidden) * weights).sum().backward()
    assert module.codebooks.grad is not None
    assert bool((module.codebooks.grad.norm(dim=-1) > 0).all())
    assert module.project.grad is not None
    assert bool((module.project.grad.flatten(1).norm(dim=-1) > 0).all())


def test_dead_codewords_restart_at_users(module: Instructions) -> None:
    hidden = torch.randn(1, 6).expand(8, -1)  # identical users: one codeword per book is used
    used = module.codes(hidden)[0]
    dead = (used + 1) % 5
    module.usage[torch.arange(3), dead] = 0.0
    before = module.codebooks.detach().clone()
    module.train()
    for _ in range(49):
        module(hidden)
    torch.testing.assert_close(module.codebooks.detach(), before)
    module(hidden)
    for k in range(3):
        unit = torch.nn.functional.normalize(hidden[0] @ module.project[k], dim=0)
        torch.testing.assert_close(module.codebooks[k, dead[k]], unit)
        assert torch.equal((module.codebooks[k] != before[k]).any(dim=-1).nonzero().flatten(), dead[k : k + 1])
    assert float(module.utilisation().min()) > 0


def test_no_restart_without_training(module: Instructions) -> None:
    module.usage.zero_()
    before = module.codebooks.detach().clone()
    module.eval()
    for _ in range(60):
        module(torch.randn(3, 6))
    torch.testing.assert_close(module.codebooks.detach(), before)


def test_utilisation_is_perplexity_over_size(module: Instructions) -> None:
    torch.testing.assert_close(module.utilisation(), torch.ones(3))
    module.usage.zero_()
    module.usage[:, :2] = 0.5
    torch.testing.assert_close(module.utilisation(), torch.full((3,), 2 / 5))


def test_instructions_start_near_given_vectors(module: Instructions) -> None:
    vectors = torch.randn(3, 12)
    module.start_at(vectors)
    tokens = module.eval()(torch.randn(50, 6))
    close = torch.nn.functional.cosine_similarity(tokens, vectors[None], dim=-1)
    assert float(close.detach().mean()) > 0.5


def test_training_is_reproducible_for_a_seed() -> None:
    def trained() -> torch.Tensor:
        torch.manual_seed(3)
        module = Instructions(6, 12, 2, 5, 1.0).train()
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(60):
            optimiser.zero_grad()
            module(torch.randn(8, 6)).square().sum(dim=-1).mul(torch.randn(8, 2)).sum().backward()
            optimiser.step()
        return module.codebooks.detach()

    assert torch.equal(trained(), trained())
