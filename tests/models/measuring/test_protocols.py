from dataclasses import replace

import numpy as np
import pytest

from models.data.dataset import Dataset, Events
from models.data.sequences import Sequences
from models.measuring.metrics import hits_lost
from models.measuring.outcomes import Outcome, Ranks, breakdown, figures, mean_by_user, summary
from models.measuring.protocols import FRESH, FROZEN, Age, leave_one_out, moments, protocol, stream_time
from schemas.errors import DataError


def dataset(user, item):
    n = len(user)
    events = Events(np.array(user), np.array(item), np.arange(n, dtype=float), np.zeros(n, np.int64))
    users, items = max(user) + 1, max(item) + 1
    return Dataset(events, [f"{u}" for u in range(users)], [f"{i}" for i in range(items)], ["x"], [""] * items, {}, "h")


@pytest.fixture
def mixed():
    rng = np.random.default_rng(0)
    return dataset([*rng.integers(0, 9, 80).tolist(), 9, 9, 10], [*rng.integers(0, 20, 80).tolist(), 1, 2, 3])


def test_leave_one_out_holds_out_the_last_two_events(mixed):
    split = leave_one_out(mixed)
    every = Sequences.of(mixed.events, len(mixed.users))
    for user in range(len(mixed.users)):
        items = every.item[every.offsets[user] : every.offsets[user + 1]].tolist()
        known, begin = split.fold.sequences, split.fold.begin[user]
        low, high = known.offsets[user], known.offsets[user + 1]
        trained = split.fold.training()
        train = trained.item[trained.offsets[user] : trained.offsets[user + 1]].tolist()
        if len(items) >= 3:
            assert known.item[low:high].tolist() == items[:-1]  # no test event
            assert known.item[begin:high].tolist() == items[-2:-1]
            assert train == items[:-2]
        else:
            assert begin == high
            assert train == items
    rows = split.rows()
    assert len(rows) == 9
    assert (split.test.item[rows] == [every.item[every.offsets[u + 1] - 1] for u in range(9)]).all()
    with pytest.raises(DataError, match="three events"):
        leave_one_out(dataset([0, 0, 1], [0, 1, 1]))


def test_stream_time_predicts_later_events(mixed):
    split = stream_time(mixed, 0.75)
    cut = int(0.75 * len(mixed.events))
    first = {80, 82}  # of users without earlier events: nothing is known of them
    assert sorted(split.test.index[split.rows()].tolist()) == sorted(set(range(cut, len(mixed.events))) - first)
    assert sorted(split.fold.sequences.index.tolist()) == list(range(cut))
    with pytest.raises(DataError, match="unknown protocol"):
        protocol("random", mixed)


def test_moments_of_knowledge(mixed):
    split = stream_time(mixed, 0.75)
    rows = split.rows()
    user = np.searchsorted(split.test.offsets, rows, "right") - 1
    low = split.test.offsets[user]
    assert (moments(split.test, split.begin, rows, FRESH) == rows).all()
    assert (moments(split.test, split.begin, rows, FROZEN) == split.begin[user]).all()
    behind = moments(split.test, split.begin, rows, Age(3))
    assert (rows - behind == np.minimum(3, rows - low)).all()


def test_a_limit_samples_events_reproducibly(mixed):
    whole, some = (protocol("stream_time", mixed, 0.75, limit) for limit in (None, 5))
    assert len(some.rows()) == 5
    assert set(some.rows()) < set(whole.rows())
    assert (some.rows() == protocol("stream_time", mixed, 0.75, 5).rows()).all()
    assert (protocol("stream_time", mixed, 0.75, 10**6).rows() == whole.rows()).all()


def test_figures_by_hand(mixed):
    split = stream_time(mixed, 0.75)
    rows = split.rows()
    rank = np.full(len(rows), 19)
    rank[:3] = (0, 4, 7)
    ranks = Ranks(rows, rank, np.full(len(rows), -2.0))
    reference = Ranks(rows, rank, np.where(np.arange(len(rows)) < 2, -1.0, -2.05))
    found = figures(Outcome(ranks, reference), split)
    assert found["recall_at_5"] == pytest.approx(2 / len(rows))
    assert found["ndcg_at_5"] == pytest.approx((1 + 1 / np.log2(6)) / len(rows))
    assert found["recall_at_10"] == pytest.approx(3 / len(rows))
    assert found["harmed_events"] == pytest.approx(2 / len(rows))
    lost, user = np.where(np.arange(len(rows)) < 2, 1.0, -0.05), split.user(rows)
    loss = [lost[user == one].mean() for one in np.unique(user)]
    assert found["harmed_fraction"] == pytest.approx(sum(mean > 0.1 for mean in loss) / len(loss))
    assert 0 < found["harmed_fraction"] < 1
    assert summary(Outcome(ranks), split)["harmed_fraction"] is None
    parts = breakdown(Outcome(ranks), split)
    assert parts["items"]["all"]["recall_at_10"] == found["recall_at_10"]
    assert sum(parts["items"][name]["n"] for name in ("known", "unseen")) == len(rows)
    for name in ("item_seen", "user_events"):
        buckets = parts[name]
        assert sum(part["n"] for part in buckets.values()) == len(rows)
        assert sum(part["recall_at_10"] * part["n"] for part in buckets.values()) == pytest.approx(3)
    assert mean_by_user(user, lost) == pytest.approx(loss)


def test_hits_lost_by_hand():
    reference, ranks = np.array([0, 9, 3, 10, 50]), np.array([5, 10, 2, 0, 99])
    assert hits_lost(ranks, reference) == pytest.approx(1 / 3)  # of three hits, the second is gone
    assert hits_lost(ranks, np.full(5, 77)) == 0
    assert hits_lost(reference, reference) == 0


def timed(user, item, time):
    made = dataset(user, item)
    return replace(made, events=replace(made.events, time=np.array(time, dtype=float)))


def test_known_items_make_the_headline():
    # In the training part users have the items 0 and 1; later one known and two unseen items.
    split = stream_time(timed([0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 2, 3], range(6)), 0.6)
    rows = split.rows()
    assert split.test.item[rows].tolist() == [2, 0, 3]
    assert split.seen(rows).tolist() == [0, 1, 0]
    outcome = Outcome(Ranks(rows, np.array([0, 1, 0]), np.zeros(3)))
    assert summary(outcome, split)["ndcg_at_10"] == pytest.approx(1 / np.log2(3))
    assert summary(outcome, split)["n"] == 1
    assert breakdown(outcome, split)["items"]["unseen"]["ndcg_at_10"] == 1


def test_sessions_start_after_a_gap():
    hour = 3600.0
    time = [0, 1, 10 * hour, 10 * hour, 10 * hour + 60, 30 * hour]
    made = timed([0] * 6, list(range(6)), time)
    strict, file = (stream_time(made, 0.2, ties=ties) for ties in ("strict", "file"))
    assert strict.rows().tolist() == [1, 2, 3, 4, 5]
    assert strict.starts(strict.rows()).tolist() == [False, True, True, False, True]  # both of the tie
    assert file.starts(file.rows()).tolist() == [False, True, False, False, True]
