"""Move a user's interests to the space of another model.

Two fits of the same data place items differently, so interests of different models cannot be compared. A state stores
the model version of its interests. After a model change, the user's next event triggers a rebuild from the history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.settings import StateSettings
from streams.profile.catalogue import ItemVectors
from streams.profile.state import UserState


def rebuild(state: UserState, vectors: ItemVectors, settings: StateSettings, model_version: str) -> None:
    """Recompute the interests and anchors from the history, in place, as if it had been folded with these vectors.

    Events that left the history are missing. With the defaults (50 events, half-life 30) they hold 31% of the weight of
    a full long interest and none of the short one. An anchor becomes the long interest of the events known when the
    knowledge was requested, as far as the history still contains them. Drift statistics restart, because distances in
    one model's space say nothing about another's.

    Args:
        model_version: the model that `vectors` belong to.
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
