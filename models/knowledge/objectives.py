"""Training objectives of a composition: likelihood alone, likelihood with a bound on harm, or CoCo's harm mask.

LWGR (arXiv 2605.18771): min_θ max_{λ ≥ 0} L_rec + λ (C − ε_C), C = E[max(0, s_ref − s_θ − δ)]. λ is updated with C on
held-out events, because overfitting drives C on training events to 0: λ ← [λ + η (C_val/ε_C − 1)]_+ after every epoch.
CoCo (arXiv 2510.14257): ℓ⁺ + ℓ⁰, with and without knowledge; the language model's LoRA is trained only on events with
ℓ⁺ − ℓ⁰ > γ. CoCo's InfoNCE is used in the limit where the whole catalogue are negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.measuring.harm import DELTA

ALLOWED = 0.5  # ε_C as a share of the initial C; without this scale λ has no effect
LEAST_ALLOWED = 1e-3  # nats
DUAL_RATE = 0.5  # η
MAX_LAGRANGE = 5.0


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of m events in a batch of snapshots.

    Args:
        nll, reference: (m,) negative log-likelihoods of the composition and of its reference, nats.
        plain: (m,) negative log-likelihoods of the same scorer without knowledge, if the objective needs them.
    """

    nll: Tensor
    reference: Tensor
    plain: Tensor | None = None

    def shortfall(self) -> Tensor:
        """Return max(0, s_ref − s_θ − δ), (m,)."""
        return torch.relu(self.nll - self.reference - DELTA)


class Objective:
    """Likelihood alone: unconstrained fusion.

    Attributes:
        needs_plain: whether `Losses.plain` is needed.
    """

    needs_plain = False

    def start(self, constraint: float) -> None:
        """Receive C before training (nats)."""

    def loss(self, losses: Losses) -> Tensor:
        """Return the loss of a batch."""
        return losses.nll.mean()

    def masked(self, losses: Losses) -> Tensor | None:
        """Return the loss for a source's masked weights; None = do not train them."""
        return None

    def after_epoch(self, constraint: float) -> None:
        """Receive C on held-out events (nats)."""

    def log(self) -> dict[str, float]:
        """Return figures of the objective's state."""
        return {}


class FixedPenalty(Objective):
    """Likelihood plus λ C with fixed λ."""

    def __init__(self, lagrange: float = 1.0) -> None:
        self.lagrange = lagrange

    def loss(self, losses: Losses) -> Tensor:  # noqa: D102
        return losses.nll.mean() + self.lagrange * losses.shortfall().mean()

    def log(self) -> dict[str, float]:  # noqa: D102
        return {"lagrange": self.lagrange}


class PrimalDual(FixedPenalty):
    """LWGR's Lagrangian.

    ε_C is a share of the initial C. If the policy starts at its reference (C = 0), it is a share of C after a first
    epoch without the constraint.
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


class Judged(Objective):
    """CoCo's harm mask. The language model is not trained in the first epoch, before there is knowledge to judge."""

    needs_plain = True

    def __init__(self, gamma: float = 0.0) -> None:
        self.gamma, self.judging = gamma, False
        self._triggered, self._events = 0, 0

    def loss(self, losses: Losses) -> Tensor:  # noqa: D102
        return losses.nll.mean() + (losses.plain.mean() if losses.plain is not None else 0.0)

    def masked(self, losses: Losses) -> Tensor | None:  # noqa: D102
        if losses.plain is None:
            return None
        loss, mask = masked_loss(losses.nll, losses.plain, self.gamma)
        self._triggered += int(mask.sum())
        self._events += len(mask)
        return loss if self.judging else None

    def after_epoch(self, constraint: float) -> None:  # noqa: D102
        self.judging = True

    def log(self) -> dict[str, float]:
        """Return the share of contradicted events since the last call."""
        rate = self._triggered / max(1, self._events)
        self._triggered = self._events = 0
        return {"trigger_rate": rate}


def masked_loss(positive: Tensor, zero: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return Σ m ℓ⁺ / max(1, Σ m) and the mask m for ℓ⁺ and ℓ⁰ of events (m,)."""
    mask = positive.detach() - zero.detach() > gamma
    # `where` instead of a product: an infinite loss times zero is NaN
    return torch.where(mask, positive, 0.0).sum() / mask.sum().clamp(min=1), mask
