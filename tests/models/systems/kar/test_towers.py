import torch

from models.systems.kar import towers
from models.systems.kar.towers import Towers
from models.systems.kar.written import KnowledgeScorer


def test_sparse_and_full_gradients_are_equal(monkeypatch):
    """The backward pass over used rows gives the same gradients as the one over all rows."""
    torch.manual_seed(0)
    model = KnowledgeScorer(torch.randn(50, 6), None, 50, 8, 1, 2, 5, 0.0)
    one_tower = Towers.tower
    monkeypatch.setattr(towers, "BLOCK", 7)

    def step(used):
        model.zero_grad()
        vectors, _ = model.item_side()
        vectors[used].square().sum().backward()
        return vectors.detach(), {name: weight.grad for name, weight in model.experts.named_parameters()}

    for used in (torch.tensor([3, 3, 41]), torch.arange(50), torch.tensor([], dtype=torch.int64)):
        plain, expected = step(used)
        with monkeypatch.context() as large:
            large.setattr(towers, "FULL", 10)
            read = []
            large.setattr(Towers, "tower", lambda *of, read=read: (read.append(len(of[1])), one_tower(*of))[1])
            vectors, found = step(used)
        assert read == [7] * 7 + [1, len(used.unique())]
        torch.testing.assert_close(vectors, plain)
        torch.testing.assert_close(found, expected)
