import math

import numpy as np
import pytest
import torch

from models.compute.neighbours import ExactBank
from models.data.sequences import Sequences
from models.knowledge.sources import moments_at
from models.language.item_cache import ItemCache
from models.systems.grasp.descriptions import Descriptions
from models.systems.grasp.holistic import HolisticAttention, HolisticSource, texts_with_neighbours
from tests.models import tiny

ITEMS = 9


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    llm = tiny.load(tmp_path_factory.mktemp("llm"))
    return Descriptions(llm, ItemCache.build(
        llm, [f"{letter} thing" for letter in "abcdefghi"], tmp_path_factory.mktemp("items"), None, 8))


@pytest.fixture(scope="module")
def sequences():
    lengths = [5, 4, 6, 5, 0, 7]
    events = np.random.default_rng(0).integers(0, ITEMS, sum(lengths))
    return Sequences(events, np.arange(len(events)), np.concatenate([[0], np.cumsum(lengths)]))


class Asked:
    """Exact banks that record every query."""

    def __init__(self):
        self.questions = []

    def __call__(self, name, vectors):
        bank, asked = ExactBank(vectors), self

        class Noted:
            def nearest(self, query, n, own):
                asked.questions.append((name, own.tolist()))
                return bank.nearest(query, n, own)

        return Noted()


def test_sigmoid_weights_initially_sum_to_about_one():
    torch.manual_seed(0)
    attention = HolisticAttention(6, 6, 4, length=5)
    assert attention.bias.item() == pytest.approx(-math.log(5))
    query, keys = torch.randn(2, 6), torch.randn(2, 5, 6)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    like = (attention.query(query)[:, None] * attention.key(keys)).sum(-1) / 2.0
    weights = 1 / (1 + torch.exp(-(like - math.log(5)))) * mask
    torch.testing.assert_close(attention(query, keys, mask), (weights[..., None] * attention.value(keys)).sum(1))
    attention.query.weight.data.zero_()  # σ(−log l) = 1 / (l + 1)
    expected = attention.value(keys[:1]).sum(1) / 6
    torch.testing.assert_close(attention(query[:1], keys[:1], mask[:1]), expected)


def test_softmax_weights_sum_to_one():
    torch.manual_seed(0)
    attention = HolisticAttention(6, 6, 4, length=5, softmax=True)
    keys = torch.randn(1, 1, 6).expand(1, 5, 6)
    mask = torch.tensor([[True, True, False, True, False]])
    torch.testing.assert_close(attention(torch.randn(1, 6), keys, mask), attention.value(keys[:, 0]))
    none = attention(torch.randn(1, 6), keys, torch.zeros_like(mask))
    assert torch.equal(none, torch.zeros(1, 4))


def test_neighbours_are_searched_once_per_moment_and_exclude_the_user(described, sequences):
    asked = Asked()
    source = HolisticSource(sequences, described, 3, 8, banks=asked)
    rows = np.array([2, 7, 12, 24])
    moments = moments_at(sequences, rows, torch.zeros(4, 8), 3)
    first = source(moments)
    assert first.shape == (4, 3, 8)
    torch.testing.assert_close(source(moments), first)
    # users 0, 1, 2 and 5; user 5 is bank row 4, because user 4 has no events
    assert asked.questions == [("items", list(range(ITEMS))), ("users", [0, 1, 2, 4])]
    first.sum().backward()
    assert all(weight.grad is not None for weight in source.parameters())


def test_a_single_user_has_no_neighbours(described):
    sequences = Sequences(np.array([0, 1, 2, 3]), np.arange(4), np.array([0, 4]))
    source = HolisticSource(sequences, described, 3, 8)
    moments = moments_at(sequences, np.array([3]), torch.zeros(1, 8), 3)
    assert source._nearest(moments, source.users).tolist() == [[-1] * 10]
    assert torch.isfinite(source(moments)).all()


def test_texts_are_joined_with_the_mean_of_their_neighbours(described):
    embeddings = described.cache.embeddings
    found = texts_with_neighbours(embeddings)
    width = found.shape[1] // 2
    others = (found[:, :width].sum(0) - found[:, :width]) / (ITEMS - 1)  # all 8 others are among the nearest ten
    torch.testing.assert_close(found[:, width:], others, atol=1e-5, rtol=1e-4)
