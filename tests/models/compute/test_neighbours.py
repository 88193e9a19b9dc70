import torch

from models.compute.neighbours import ExactBank, exact, mean_of


def test_nearest_by_cosine_excludes_the_query_itself():
    vectors = torch.tensor([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [-1.0, 0.3]])
    bank = exact("users", vectors)
    assert bank.nearest(vectors, 2, torch.arange(4)).tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    assert bank.nearest(vectors[:1], 2, torch.tensor([-1])).tolist() == [[0, 1]]


def test_missing_neighbours_are_minus_one():
    bank = ExactBank(torch.eye(2))
    assert bank.nearest(torch.eye(2), 3, torch.tensor([0, -1])).tolist() == [[1, -1, -1], [1, 0, -1]]
    assert ExactBank(torch.zeros(0, 2)).nearest(torch.eye(2), 3, torch.tensor([-1, -1])).tolist() == [[-1] * 3] * 2
    assert bank.nearest(torch.zeros(0, 2), 3, torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


def test_the_mean_ignores_missing_rows():
    vectors = torch.tensor([[2.0, 0.0], [4.0, 2.0]])
    rows = torch.tensor([[0, 1, -1], [1, -1, -1], [-1, -1, -1]])
    assert mean_of(vectors, rows).tolist() == [[3.0, 1.0], [4.0, 2.0], [0.0, 0.0]]
    assert mean_of(torch.zeros(0, 2), rows).tolist() == [[0.0, 0.0]] * 3
