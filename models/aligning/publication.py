"""Decides whether to publish a trained adapter, on held-out contradicted users and held-out untouched users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.data.dataset import FloatArray, IntArray
from models.measuring.intervals import paired_interval

# Minimum of held-out users of each kind. Compared with Student's t, a bootstrap interval is a fifth too narrow with 8
# users and more than a third too narrow with 5.
FEWEST = 8


@dataclass(frozen=True, slots=True)
class Paired:
    """The same m events judged before and after training.

    Args:
        user: (m,) users; events of one user are not independent.
        before, after: (m,) margins, nats.
    """

    user: IntArray
    before: FloatArray
    after: FloatArray

    def change(self, clip: float) -> tuple[float, float, float]:
        """Return the mean of after − before with its 95% interval; margins are clipped to [−clip, clip] first."""
        gain = np.clip(self.after, -clip, clip) - np.clip(self.before, -clip, clip)
        return paired_interval(self.user, gain)


@dataclass(frozen=True, slots=True)
class PublicationDecision:
    """The decision, its reason, and the figures behind it (nats; see `decide_publication`)."""

    publish: bool
    reason: str
    figures: dict[str, float]


def decide_publication(
    contradicted: Paired, untouched: Paired, *, bound: float, clip: float, fewest: int = FEWEST,
) -> PublicationDecision:
    """Publish if held-out contradicted users gain and untouched users lose at most `bound`, both with 95% confidence.

    The lower end of the contradicted users' change must be above 0, and that of the untouched users' change above
    −`bound`. Few or noisy users therefore lead to a rejection.

    Args:
        bound: nats ≥ 0.
        clip: the judge's B, nats. Margins are clipped as in the judge, so no single event decides.
    """
    figures = {
        "contradicted_users": float(len(np.unique(contradicted.user))),
        "contradicted_events": float(len(contradicted.user)),
        "untouched_users": float(len(np.unique(untouched.user))), "untouched_events": float(len(untouched.user))}
    for name, part in (("contradicted", contradicted), ("untouched", untouched)):
        values = np.concatenate([part.before, part.after])
        if not np.isfinite(values).all():
            return PublicationDecision(False, f"margins of {name} users are not finite", figures)
        if (users := int(figures[f"{name}_users"])) < fewest:
            return PublicationDecision(False, f"only {users} held-out {name} users, {fewest} are needed", figures)
        change, low, high = part.change(clip)
        figures |= {
            f"{name}_before": float(np.clip(part.before, -clip, clip).mean()),
            f"{name}_after": float(np.clip(part.after, -clip, clip).mean()),
            f"{name}_change": change, f"{name}_low": low, f"{name}_high": high}
    gain = (f"margins of contradicted users {figures['contradicted_change']:+.4f} nats "
            f"[{figures['contradicted_low']:+.4f}, {figures['contradicted_high']:+.4f}]")
    fall = (f"of untouched users {figures['untouched_change']:+.4f} "
            f"[{figures['untouched_low']:+.4f}, {figures['untouched_high']:+.4f}]")
    if figures["contradicted_low"] <= 0:
        return PublicationDecision(False, f"{gain}: no sure gain; {fall}", figures)
    if figures["untouched_low"] < -bound:
        return PublicationDecision(False, f"{fall}: may fall by more than {bound:g}; {gain}", figures)
    return PublicationDecision(True, f"{gain}, {fall}", figures)
