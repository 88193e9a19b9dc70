from __future__ import annotations

import torch

from models.knowledge.experts import HybridExperts


def test_output_is_the_gated_sum_of_shared_and_own_experts() -> None:
    torch.manual_seed(0)
    module = HybridExperts(towers=3, inner=6, outer=4, shared=2, specific=3, width=5)
    with torch.no_grad():
        module.gate.normal_()
    states = torch.randn(2, 3, 6)
    out = module.eval()(states)
    assert out.shape == (2, 3, 4)
    x = module.standardise(states)
    for tower in range(3):
        gate = torch.softmax(x[:, tower] @ module.gate[tower], dim=-1)
        experts = [torch.relu(x[:, tower] @ module.shared_in[e]) @ module.shared_out[e] for e in range(2)]
        experts += [torch.relu(x[:, tower] @ module.own_in[tower, e]) @ module.own_out[tower, e] for e in range(3)]
        expected = sum(gate[:, e, None] * expert for e, expert in enumerate(experts))
        torch.testing.assert_close(out[:, tower], expected, rtol=1e-4, atol=1e-5)


def test_shared_experts_get_gradients_from_every_tower_own_experts_from_one() -> None:
    torch.manual_seed(0)
    module = HybridExperts(3, 6, 4)
    module(torch.randn(8, 3, 6))[:, 1].sum().backward()
    assert module.shared_in.grad is not None
    assert module.own_in.grad is not None
    assert float(module.shared_in.grad.norm()) > 0
    assert float(module.own_in.grad[1].norm()) > 0
    assert float(module.own_in.grad[0].norm()) == 0


def test_the_common_part_of_all_users_is_removed() -> None:
    torch.manual_seed(0)
    module = HybridExperts(2, 6, 4).train()
    common, scale = torch.randn(2, 6) * 100, torch.rand(2, 6) + 0.1
    for _ in range(400):
        module.standardise(common + scale * torch.randn(32, 2, 6))
    before = module.mean.clone()
    x = module.eval().standardise(common + scale * torch.randn(4096, 2, 6))
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(2, 6), rtol=0, atol=0.15)
    torch.testing.assert_close(x.std(dim=0), torch.ones(2, 6), rtol=0.15, atol=0)
    assert torch.equal(module.mean, before)  # no update outside training


def test_a_dimension_without_variance_is_not_amplified() -> None:
    module = HybridExperts(1, 6, 4).train()
    states = torch.randn(5, 1, 6)
    states[..., 0] = 1e6
    for _ in range(3):
        module(states)
    assert float(module.eval().standardise(states).detach().abs().max()) < 10
