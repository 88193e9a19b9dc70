"""What a composition is trained to do: likelihood alone, or likelihood under a bound on harm.

LWGR (arXiv 2605.18771): min_θ max_{λ ≥ 0} L_rec + λ (C − ε_C), C = E[max(0, s_ref − s_θ − δ)]. λ follows C on held-out
events, since C of the training events vanishes by overfitting: λ ← [λ + η (C_val/ε_C − 1)]_+, after every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.protocols import DELTA

ALLOWED = 0.5  # ε_C as a share of C at the start; without such a scale λ is inert
LEAST_ALLOWED = 1e-3  # nats
DUAL_RATE = 0.5  # η
MAX_LAGRANGE = 5.0


@dataclass(frozen=True, slots=True)
class Losses:
    """m events of a batch of snapshots.

    Args:
        nll, reference: (m,) negative log-likelihood of the composition and of its reference, nats.
        fused, hidden: (m, d) user states with and without knowledge.
        vectors: (n, d) of the catalogue.
        target: (m,) item rows.
        moment: (m,) the snapshot each event belongs to.
    """

    nll: Tensor
    reference: Tensor
    fused: Tensor
    hidden: Tensor
    vectors: Tensor
    target: Tensor
    moment: Tensor

    def shortfall(self) -> Tensor:
        """Return max(0, s_ref − s_θ − δ), (m,)."""
        return torch.relu(self.nll - self.reference - DELTA)


class Objective:
    """Likelihood alone: unconstrained fusion."""

    def start(self, constraint: float) -> None:
        """Take note of C before training (nats)."""

    def loss(self, losses: Losses) -> Tensor:
        """Return the loss of a batch."""
        return losses.nll.mean()

    def after_epoch(self, constraint: float) -> None:
        """Take note of C on held-out events (nats)."""

    def log(self) -> dict[str, float]:
        """Return figures of its state."""
        return {}


class FixedPenalty(Objective):
    """Likelihood plus λ C with λ fixed."""

    def __init__(self, lagrange: float = 1.0) -> None:
        self.lagrange = lagrange

    def loss(self, losses: Losses) -> Tensor:  # noqa: D102
        return losses.nll.mean() + self.lagrange * losses.shortfall().mean()

    def log(self) -> dict[str, float]:  # noqa: D102
        return {"lagrange": self.lagrange}


class PrimalDual(FixedPenalty):
    """LWGR's Lagrangian. ε_C is a share of C where the policy starts, or, where it starts at its reference (C = 0),
    of C after a first epoch without the constraint.
    """

    allowed = 0.0

    def start(self, constraint: float) -> None:  # noqa: D102
        self.allowed = ALLOWED * constraint if constraint > LEAST_ALLOWED else 0.0
        self.lagrange = 1.0 if self.allowed else 0.0

    def after_epoch(self, constraint: float) -> None:  # noqa: D102
        if not self.allowed:
            self.allowed, self.lagrange = max(ALLOWED * constraint, LEAST_ALLOWED), 1.0
            return
        step = DUAL_RATE * max(-1.0, min(1.0, constraint / self.allowed - 1))
        self.lagrange = min(MAX_LAGRANGE, max(0.0, self.lagrange + step))

    def log(self) -> dict[str, float]:  # noqa: D102
        return {"lagrange": self.lagrange, "allowed": self.allowed}
