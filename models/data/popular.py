"""The popularity of items at the end of a data set, which a new ranking worker begins with."""

from __future__ import annotations

import numpy as np

from models.data.dataset import Dataset, Events

MOST = 20_000  # items


def popular_items(dataset: Dataset, events: Events, half_life_s: float) -> dict[str, float]:
    """Return the number of events of each item, each worth 2^(−age / half-life) at the newest event's time.

    Args:
        events: of the data set, in order of time.
        half_life_s: seconds.
    """
    worth = 0.5 ** ((events.time[-1] - events.time) / half_life_s)
    counts = np.bincount(events.item, worth, minlength=len(dataset.items))
    best = np.argsort(-counts, kind="stable")[:MOST]
    return {dataset.items[row]: round(float(counts[row]), 6) for row in best.tolist() if counts[row] >= 1e-6}
