"""The part of a data set that is evidence of interest: what is fitted and measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.data.dataset import BoolArray, Dataset
from schemas.errors import DataError
from schemas.settings.meanings import Meaning, Meanings

NO_EVIDENCE = "events_no_evidence"  # in `Dataset.skipped`


def evidence(dataset: Dataset, meanings: Meanings | None = None) -> Dataset:
    """Return the data set without events that are no evidence, as streams keeps them out of a history.

    These are neutral events, events against an item, and the user's events with that item up to then.

    Args:
        meanings: what events mean; None = what their types' names say.

    Raises:
        DataError: no event is left.
    """
    meanings = Meanings() if meanings is None else meanings
    kinds = [meanings[name] or Meaning() for name in dataset.types]
    if all(kind.evidence for kind in kinds):
        return dataset
    events = dataset.events
    keep: BoolArray = np.array([kind.evidence for kind in kinds])[events.type]
    against = np.flatnonzero(np.array([kind.effect == "against" for kind in kinds])[events.type])
    pair = events.user * len(dataset.items) + events.item
    pairs, place = np.unique(pair[against], return_inverse=True)
    if len(pairs):
        newest = np.full(len(pairs), -np.inf)
        np.maximum.at(newest, place, events.time[against])
        found = np.minimum(np.searchsorted(pairs, pair), len(pairs) - 1)
        keep &= (pairs[found] != pair) | (events.time > newest[found])
    if not keep.any():
        raise DataError("no event is evidence of interest; FRESHET_EVENTS_MEANINGS says what events mean, such as "
                        f"{dataset.types[0]}=interest")
    dropped = int(np.count_nonzero(~keep))
    return replace(dataset, events=events[np.flatnonzero(keep)], skipped={**dataset.skipped, NO_EVIDENCE: dropped})
