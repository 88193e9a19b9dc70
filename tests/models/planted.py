"""A small data set in which the order of events predicts the next one."""

import numpy as np

from models.data.dataset import Dataset, Events


def chains(users=60, items=30, each=16, seed=0):
    """Return users who step through the catalogue by 1 or 2 items; one in ten steps is random."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        at, step, start = int(rng.integers(items)), 1 + user % 2, rng.uniform(0, 50)
        seen: list[int] = []
        for event in range(each):
            while at in seen:
                at = (at + 1) % items
            seen.append(at)
            rows.append((start + event, user, at))
            at = (at + (step if rng.random() < 0.9 else int(rng.integers(items)))) % items
    rows.sort()
    time, user, item = (np.array(column) for column in zip(*rows, strict=True))
    events = Events(user.astype(np.int64), item.astype(np.int64), time, np.zeros(len(time), np.int64))
    texts = [f"thing {row}, of kind {row % 3}" if row % 7 else "" for row in range(items)]
    return Dataset(events, [f"{u}" for u in range(users)], [f"{i}" for i in range(items)], ["x"], texts, {}, "hash")


def lottery(users=100, kinds=24, of_each=3, each=24, seed=0):
    """Return users whose items are random, and what nobody can know: (users, each + 1, kinds), kinds to come.

    Nothing in a history tells the next item. Foreknowledge is 1 for the kinds of the next six items.
    """
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(kinds * of_each)[:each] for _ in range(users)])
    start = rng.uniform(0, 50, users)
    time = (start[:, None] + np.arange(each)).ravel()
    order = np.argsort(time, kind="stable")
    user = np.repeat(np.arange(users), each)
    events = Events(user[order], items.ravel()[order], time[order], np.zeros(len(time), np.int64))
    coming = np.zeros((users, each + 1, kinds), np.float32)
    for at in range(each):
        for later in range(at, min(at + 6, each)):
            coming[np.arange(users), at, items[:, later] % kinds] = 1
    dataset = Dataset(
        events, [f"{u}" for u in range(users)], [f"{i}" for i in range(kinds * of_each)], ["x"],
        [f"thing {row}" for row in range(kinds * of_each)], {}, "lottery")
    return dataset, coming
