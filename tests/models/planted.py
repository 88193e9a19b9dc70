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
