"""Tied events: nothing is predicted from an event at the same time, and their order says nothing."""

import numpy as np
import pytest
import torch

from models.data.dataset import Dataset, Events
from models.data.fold import Fold
from models.data.sequences import Sequences, tensors, tie_order, windows
from models.measuring.protocols import TIES, Age, moments, protocol
from models.scorers.backbone import Backbone, pad
from models.scorers.ranks import hidden_before, seen_pairs, target_ranks
from models.scorers.snapshots import before, draw, regular


def events(user, item, time):
    n = len(user)
    order = np.argsort(time, kind="stable")
    return Events(np.array(user)[order], np.array(item)[order], np.array(time, float)[order], np.zeros(n, np.int64))


@pytest.fixture
def two():
    """User 0: items 5 | 3 4 | 6, user 1: 1 2 | 7 (a bar is a later time)."""
    return Sequences.of(events([0, 0, 0, 0, 1, 1, 1], [5, 3, 4, 6, 1, 2, 7], [0, 1, 1, 2, 0, 0, 5]), 2)


def leaky(users=120, items=40, days=6, seed=0):
    """Users who take, every day, a random item a and the item a + 1; the file has them in this order."""
    rng = np.random.default_rng(seed)
    user, item, time = [], [], []
    for each in range(users):
        for day, start in enumerate(rng.permutation(items // 2)[:days]):
            user += [each, each]
            item += [2 * start, 2 * start + 1]
            time += [day, day]
    made = events(user, item, time)
    texts = [""] * items
    return Dataset(made, [f"{u}" for u in range(users)], [f"{i}" for i in range(items)], ["x"], texts, {}, "h")


def follows(split):
    """Return NDCG-like hits of the model that knows that a + 1 follows a: share of targets it ranks first."""
    rows = split.rows()
    newest = before(split.test, rows, 1)[:, 0]

    def scores(part):
        logits = torch.zeros(len(part), split.fold.n_items)
        logits[torch.arange(len(part)), torch.from_numpy((newest[part] + 1) % split.fold.n_items)] = 1.0
        return logits

    return float((target_ranks(scores, split.fold.n_items, split.test, rows)[0] == 0).mean())


def test_what_is_known_before_a_tie(two):
    assert two.known(np.arange(7)).tolist() == [0, 1, 1, 3, 4, 4, 6]
    assert two.with_history().tolist() == [False, True, True, True, False, False, True]
    assert before(two, np.array([2, 3, 5, 6]), 2).tolist() == [[-1, 5], [3, 4], [-1, -1], [1, 2]]
    user, item = seen_pairs(two, np.array([0, 0, 4]), np.array([2, 3, 5]))
    assert list(zip(user.tolist(), item.tolist(), strict=True)) == [(0, 5), (1, 5), (1, 3), (1, 4)]
    assert sorted(draw(two, 9, np.random.default_rng(0)).tolist()) == [1, 2, 3, 6]
    assert regular(two, np.array([0, 4]), 1).tolist() == [1, 2, 3, 6]
    assert moments(two, two.offsets[1:], np.array([2, 3, 6]), Age(1)).tolist() == [0, 1, 4]


def test_windows_read_what_is_known(two):
    tokens, where, slots, rows = tensors(two, windows(two, 4, 1))
    read = {row: tokens[w, :s].tolist() for w, s, row in zip(where, slots, rows.tolist(), strict=True)}
    assert read[2] == read[1] == [6]
    assert read[3] == [6, 4, 5]
    assert read[5] == read[4] == []
    causal = tensors(two, windows(two, 4, 1), strict=False)
    assert causal[2].tolist() != slots.tolist()


def test_hidden_states_are_those_of_the_strict_history(two):
    torch.manual_seed(0)
    model = Backbone(8, 8, 2, 2, 3, 0.0).eval()
    for begin in (two.offsets[:-1], np.array([2, 5])):  # the second begins within ties
        rows, hidden = hidden_before(model, two, begin)
        histories = [[i for i in line if i >= 0] for line in before(two, rows, 3).tolist()]
        tokens, lengths = pad(histories, 3)
        assert torch.allclose(hidden, model(tokens)[torch.arange(len(rows)), lengths], atol=1e-6)
    some = np.array([2, 6])
    assert torch.allclose(hidden_before(model, two, two.offsets[:-1], rows=some)[1], hidden_before(
        model, two, two.offsets[:-1])[1][[2, 6]], atol=1e-6)


def test_a_subset_keeps_its_ties(two):
    kept = two.kept(np.array([1, 0, 1, 1, 1, 1, 0], bool))
    assert kept.item.tolist() == [5, 4, 6, 1, 2]
    assert kept.offsets.tolist() == [0, 3, 5]
    assert kept.known(np.arange(5)).tolist() == [0, 1, 2, 3, 3]


def test_the_order_of_ties_follows_the_seed_and_agrees_with_the_training_part():
    data = leaky()
    e, users = data.events, len(data.users)
    every = [Sequences.of(e, users, tie_order(len(e), seed)) for seed in (None, 1, 2)]
    assert (every[0].item[::2] < every[0].item[1::2]).all()
    first = (every[1].item[::2] < every[1].item[1::2]).mean()
    assert 0.4 < first < 0.6
    assert (every[1].item != every[2].item).any()
    for which in ("stream_time", "leave_one_out"):
        split = protocol(which, data, 0.61, seed=3)  # the cut goes through a day, and through ties
        past = {u: split.fold.sequences.item[slice(*split.fold.sequences.offsets[u : u + 2])] for u in range(users)}
        for u in range(users):
            own = split.test.item[split.test.offsets[u] : split.begin[u]]
            assert (own == past[u]).all()
        assert sorted(split.test.index.tolist()) == list(range(len(e)))
    again = Fold.of(e, users, len(data.items), seed=3)
    assert (again.sequences.item == Fold.of(e, users, len(data.items), seed=3).sequences.item).all()


def test_the_file_order_gives_the_answer_away_and_strictly_earlier_events_do_not():
    found = {ties: follows(protocol("stream_time", leaky(), 0.6, ties=ties, seed=1)) for ties in TIES}
    assert found["file"] > 0.45  # every second event of a day follows from the first
    assert 0.15 < found["shuffled"] < 0.35
    assert found["strict"] < 0.06  # chance is 1 in 40
    last = {ties: follows(protocol("leave_one_out", leaky(), ties=ties, seed=1)) for ties in TIES}
    assert last["file"] > 0.95
    assert 0.35 < last["shuffled"] < 0.65
    assert last["strict"] < 0.06


def test_the_same_events_are_predicted_with_every_seed():
    data = leaky()
    chosen = [np.sort(split.test.index[split.rows()]) for seed in (1, 2) for limit in (None, 50)
              for split in [protocol("stream_time", data, 0.61, limit, seed=seed)]]
    assert (chosen[0] == chosen[2]).all()
    assert (chosen[1] == chosen[3]).all()
    assert len(chosen[1]) == 50
