import torch

from models.compute.pca import Whitening, condense


def test_condensed_texts_are_white_and_missing_texts_are_zero():
    raw = torch.randn(500, 32) * torch.logspace(0, 2, 32) + 5
    raw[3] = 0
    out = condense(raw, 8)
    assert (out[3] == 0).all()
    rest = out[torch.arange(500) != 3]
    torch.testing.assert_close(rest.T @ rest / 499, torch.eye(8), rtol=0, atol=0.1)
    assert torch.isfinite(condense(torch.randn(3, 32), 8)).all()
    assert (condense(torch.zeros(4, 32), 8) == 0).all()


def test_new_states_are_projected_like_the_bank():
    torch.manual_seed(0)
    bank = torch.randn(200, 32) * torch.linspace(0.1, 3, 32) + 5
    bank[3] = 0
    whitening = Whitening(bank, 8)
    assert whitening.width == 8
    torch.testing.assert_close(whitening(bank[4:]), condense(bank, 8)[4:], rtol=1e-3, atol=1e-3)
    assert whitening(bank[4:]).std(0).sub(1).abs().max() < 0.1
