from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data.sequences import Sequences
from models.scorers.untrained import Popularity, Walk, added


def sequences(*users):
    lengths = [len(items) for items in users]
    return Sequences(np.concatenate(users), np.arange(sum(lengths)), np.cumsum([0, *lengths]))


def test_popularity_is_the_same_for_everyone():
    scores = Popularity.fit(sequences([0, 1], [1, 2], [1]), 4)(np.array([[0, 1], [-1, -1]]))
    assert scores.shape == (2, 4)
    assert (scores[0] == scores[1]).all()
    assert scores[0].argsort(descending=True).tolist() in ([1, 0, 2, 3], [1, 2, 0, 3])


def test_a_walk_by_hand():
    # User 0 has 0 1 2, user 1 has 0 3: from 0 half of the walks go to each user, then to one of the other items.
    made = sequences([0, 1, 2], [0, 3])
    walk = Walk.candidates(made, 5)[0]
    steps = walk.reached(torch.arange(5))
    assert steps[0].tolist() == pytest.approx([0, 0.25, 0.25, 0.5, 0])
    assert steps[1].tolist() == pytest.approx([0.5, 0, 0.5, 0, 0])
    assert steps[4].tolist() == [0] * 5
    both = replace(walk, older=1.0, damped=0.0)(np.array([[1, 0], [-1, 3], [-1, -1]]))
    assert both[0].tolist() == pytest.approx([0.5, 0.25, 0.75, 0.5, 0], abs=1e-5)
    assert both[1].tolist() == pytest.approx([1, 0, 0, 0, 0], abs=1e-5)
    assert both[2].argmax() == 0  # without history: the most popular item
    newest = replace(walk, older=0.0, damped=0.0)(np.array([[1, 0]]))
    assert newest[0].tolist() == pytest.approx([0, 0.25, 0.25, 0.5, 0], abs=1e-5)
    damped = replace(walk, older=0.0, damped=1.0)(np.array([[-1, 1]]))
    assert damped[0].tolist() == pytest.approx([0.25, 0, 0.5, 0, 0], abs=1e-5)


def test_scores_are_added_by_weight():
    ones = lambda histories: torch.ones(len(histories), 2)  # noqa: E731
    assert added([(2.0, ones), (0.5, ones)])(np.zeros((3, 1), np.int64)).tolist() == [[2.5, 2.5]] * 3
