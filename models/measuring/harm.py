"""Harm: which users a scorer makes worse than behaviour alone would have."""

from __future__ import annotations

import numpy as np

from models.data.dataset import FloatArray

DELTA = 0.1  # δ, nats: losing less than this to the reference is no harm (LWGR's margin)
ROUNDING = 1e-4  # nats


def harmed(loss: FloatArray) -> np.ndarray:
    """Return (m,) bool: whether log-likelihoods fell behind the reference's by more than δ, given by how much (m,)."""
    return np.asarray(loss > DELTA + ROUNDING)
