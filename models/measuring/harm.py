"""Harm: the users for whom a scorer is worse than behaviour alone, by the likelihood of what they did.

The trust region bounds this harm by construction: it is a guarantee on the likelihood and says nothing of the top of
the list. `models.measuring.metrics.hits_lost` measures that.
"""

from __future__ import annotations

import numpy as np

from models.data.dataset import FloatArray

DELTA = 0.1  # δ, nats: losing less than this to the reference is no harm (LWGR's margin)
ROUNDING = 1e-4  # nats


def harmed(loss: FloatArray) -> np.ndarray:
    """Return (m,) bool: whether the loss (m,) in log-likelihood against the reference (nats) is more than δ."""
    return np.asarray(loss > DELTA + ROUNDING)
