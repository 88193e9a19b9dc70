import numpy as np
import pytest
import torch

from benchmarks.ctr.click_models import Auc, Ctr, auc, fit_ctr, judge_ctr, logloss, samples, written_events


def test_samples_exclude_written_events_and_contain_earlier_history():
    offsets = np.array([0, 5, 5, 75])
    item, rating = np.arange(75), np.tile([5.0, 1.0, 4.0], 25)
    result = samples(item, rating, offsets)
    assert written_events(np.diff(offsets)).tolist() == [3, 0, 30]
    assert result.item.tolist() == [3, 4, *range(35, 75)]
    assert result.history[0].tolist() == [-1] * 7 + [0, 1, 2]
    assert result.liked[0].tolist() == [0] * 7 + [1, 0, 1]
    assert result.history[2].tolist() == list(range(25, 35))
    assert (result.label == (rating[result.item] > 3)).all()
    assert set(result.of_users(np.array([2])).user) == {2}


def test_auc_by_hand():
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.0, 0, 1, 1])) == pytest.approx(0.75)
    assert auc(np.zeros(4), np.array([0.0, 1, 0, 1])) == 0.5
    assert auc(np.zeros(2), np.ones(2)) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["din", "dcnv2"])
def test_knowledge_improves_predictions(kind):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    users, items, each = 60, 40, 24
    taste, features = torch.randn(users, 3), torch.randn(items, 3)
    item = rng.integers(0, items, users * each)
    rating = np.where((taste[np.repeat(np.arange(users), each)] * features[item]).sum(1).numpy() > 0, 5.0, 1.0)
    everything = samples(item, rating, np.arange(users + 1) * each)
    train, test = everything.of_users(np.arange(45)), everything.of_users(np.arange(45, users))
    aucs = []
    for knowledge in ((None, None), (taste, features)):
        torch.manual_seed(1)
        model = Ctr(items, kind, *knowledge)
        fit_ctr(model, train, test, epochs=25)
        aucs.append(judge_ctr(model, test)["auc"])
    assert aucs[1] > aucs[0] + 0.05
    assert aucs[1] > 0.75


def test_sample_weights_equal_copies():
    rng = np.random.default_rng(0)
    score, label, weight = rng.integers(0, 5, 60).astype(float), rng.integers(0, 2, 60) * 1.0, rng.integers(0, 4, 60)
    copies = np.repeat(np.arange(60), weight)
    assert Auc(score, label)(weight.astype(float)) == pytest.approx(auc(score[copies], label[copies]))


def test_logloss_equals_that_of_the_probabilities():
    score = np.array([-2.0, 0.0, 3.0])
    p = 1 / (1 + np.exp(-score))
    assert logloss(score, np.ones(3)) == pytest.approx(-np.log(p))
    assert logloss(score, np.zeros(3)) == pytest.approx(-np.log(1 - p))
