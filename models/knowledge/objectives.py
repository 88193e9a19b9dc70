"""What a composition is trained to do: likelihood alone, under a bound on harm, or with harm as judge of what learns.

LWGR (arXiv 2605.18771): min_θ max_{λ ≥ 0} L_rec + λ (C − ε_C), C = E[max(0, s_ref − s_θ − δ)]. λ follows C on held-out
events, since C of the training events vanishes by overfitting: λ ← [λ + η (C_val/ε_C − 1)]_+, after every epoch.
CoCo (arXiv 2510.14257): ℓ⁺ + ℓ⁰ with and without knowledge, and the language model's LoRA moved only by events with
ℓ⁺ − ℓ⁰ > γ. Its InfoNCE is taken to the limit: the whole catalogue are the negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.measuring.harm import DELTA

ALLOWED = 0.5  # ε_C as a share of C at the start; without such a scale λ is inert
LEAST_ALLOWED = 1e-3  # nats
DUAL_RATE = 0.5  # η
MAX_LAGRANGE = 5.0


@dataclass(frozen=True, slots=True)
class Losses:
    """m events of a batch of snapshots.

    Args:
        nll, reference: (m,) negative log-likelihood of the composition and of its reference, nats.
        plain: (m,) negative log-likelihood of the same scorer without knowledge, where the objective wants it.
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
        """Take note of C before training (nats)."""

    def loss(self, losses: Losses) -> Tensor:
        """Return the loss of a batch."""
        return losses.nll.mean()

    def masked(self, losses: Losses) -> Tensor | None:
        """Return the loss that a source's masked weights learn from; None = they stay as they are."""
        return None

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


class Judged(Objective):
    """CoCo's judge. In the first epoch the language model stays as it is, until there is knowledge to judge."""

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
        """Return the share of events that triggered since the last call."""
        rate = self._triggered / max(1, self._events)
        self._triggered = self._events = 0
        return {"trigger_rate": rate}


def masked_loss(positive: Tensor, zero: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return Σ m ℓ⁺ / max(1, Σ m) and m of events (m,), for their ℓ⁺ and ℓ⁰."""
    mask = positive.detach() - zero.detach() > gamma
    # where, not a product: an infinite loss times zero would be NaN
    return torch.where(mask, positive, 0.0).sum() / mask.sum().clamp(min=1), mask
