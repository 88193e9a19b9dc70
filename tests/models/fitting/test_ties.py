"""What `freshet fit` trains on when many events of a user have the same time."""

import numpy as np
import pytest

from models.data.dataset import Dataset, Events
from models.fitting import freshet
from schemas.settings import FitSettings, Settings


class SeenError(Exception):
    pass


def test_a_fit_neither_learns_the_files_order_nor_predicts_ties_from_each_other(monkeypatch):
    each, users = 20, 10  # a user's events of a day stand in the order of items
    item = np.tile(np.arange(each), users)
    events = Events(np.repeat(np.arange(users), each), item, np.repeat(np.arange(users) * 1.0, each),
                    np.zeros(users * each, np.int64))
    data = Dataset(events, [f"{u}" for u in range(users)], [f"{i}" for i in range(each)], ["x"], [""] * each, {}, "h")
    folds = []

    def stop(fold, *_, **__):
        folds.append(fold)
        raise SeenError

    monkeypatch.setattr(freshet, "fit_fold", stop)
    for seed in (1, 2):
        with pytest.raises(SeenError):
            freshet.fit(data, events, Settings(fit=FitSettings(seed=seed)), None, None)
    first, second = (fold.sequences for fold in folds)
    assert 0.3 < (np.diff(first.item[:each * users]) > 0).mean() < 0.7
    assert (first.item != second.item).any()
    assert not first.with_history().any()
