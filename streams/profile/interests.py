"""Interests in the space of another model.

Two fits of the same data place items differently, so averages of one model's item vectors say nothing beside the
other's. A state remembers whose vectors its interests are averages of; with its next event after the model has changed
they are made anew from its history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.settings import StateSettings
from streams.profile.catalogue import ItemVectors
from streams.profile.state import UserState


def rebuild(state: UserState, vectors: ItemVectors, settings: StateSettings, model_version: str) -> None:
    """Make short and long interest and the anchors anew from the history, as if folded with these vectors, in place.

    What has left the history is missing: by the defaults (50 events, half-life 30) 31% of the weight of a full long
    interest, none of the short one's. Anchors are the long interest of the events that the knowledge was asked for
    with, as far as the history has them. Drift starts anew: distances to one model's anchor say nothing of those to
    another's.

    Args:
        model_version: whose vectors these are.
    """
    path = vectors.vectors[[vectors.rows.get(item, vectors.unknown) for item in state.items]]
    counts = np.array(state.counts, dtype=np.int64)

    def interest(half_life: float, until: int) -> bytes:
        return _average(path[counts <= until], half_life).astype("<f4").tobytes()

    newest = state.count
    state.short = interest(settings.short_half_life, newest)
    state.long = interest(settings.long_half_life, newest)
    if state.anchor:
        state.anchor = interest(settings.long_half_life, state.knowledge_count)
    if state.pending is not None:
        state.pending.anchor = interest(settings.long_half_life, state.pending.count)
    state.cusum, state.drifted = 0.0, False
    state.drift_n, state.drift_mean, state.drift_m2 = 0, 0.0, 0.0
    state.interest_model = model_version


def _average(path: NDArray[np.float32], half_life: float) -> NDArray[np.float32]:
    """Return Σ_j (1 − a) a^(m−1−j) v_j of vectors (m, d), oldest first, with a = 2^(−1/half_life), as (d,)."""
    keep = 0.5 ** (1.0 / half_life)
    return ((1.0 - keep) * keep ** np.arange(len(path) - 1, -1, -1.0)).astype(np.float32) @ path
