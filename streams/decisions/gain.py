"""What is a refresh expected to bring? Learned online from what earlier refreshes brought.

The outcome of a refresh is the mean margin over the user's first `WINDOW` judged events with the new knowledge minus
the mean over the last `WINDOW` with the old one (0 where there was none: behaviour alone has margin 0), in units of the
judge's bound B per event, so within [−2, 2]. It is regressed on what was known when the refresh was decided: ridge
regression with exponential forgetting, exact and recursive. Its prior mean is the fixed order in `refresh.priority`, so
it works from the first event and bends, slowly, to the data as they come; and as the old data fade it goes back there.

Limits. Outcomes exist only for refreshes that were made, of users who came back often enough to tell. A user whose
margins were low by chance improves without a refresh too (regression to the mean): the learned gain orders users; it is
not a causal effect. A new refresh within the window ends the trial without an outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, log1p

import numpy as np
from numpy.typing import NDArray

from schemas.messages import RefreshReason
from streams.decisions.refresh import Policy, priority
from streams.detection.trust import KAPPAS, mixture
from streams.profile.state import Trial, UserState

Floats = NDArray[np.float64]

# The cooldown's default: refreshes that follow each other as fast as allowed still have their outcome.
WINDOW = 5
# Old outcomes fade by half in 700 refreshes, soon enough after a new model.
FORGET = 0.999
# The prior weighs as much as ten thousand outcomes. An outcome is a mean of 5 margins, most of them clipped, and part
# of it is regression to the mean (above), so a few of them mislead: on MovieLens-100K at 53 calls per 1,000 events the
# gain in NDCG@10 is .0092 with every-20, .0091 with a prior worth 100 outcomes, .0099 with 1,000, .0108 with this.
RIDGE = 10_000.0
FEATURES = ("constant", "priority", "drift", "harm", "unseen", "time since", "rate", "trust", "cold start")
# In units of B per event. Priority is 0 where no threshold is crossed and up to 3 (here 1). `unseen` is the number of
# events the knowledge lacks times the length of the short interest, which is near 1 where those items are alike and
# near 0 where they go in all directions: alike items are followed by more of their kind, and only knowledge that has
# seen them knows. MovieLens-100K: of 13 quantities known at the time, this likeness says most about what a refresh
# brings (correlation .22 with the gain in log-likelihood; the number of events alone .07, the CUSUM's distance .03).
# Who has no knowledge, or none that is trusted, is served by behaviour alone and gains most (Beauty at 70 calls per
# 1,000 events: .0065 with these weights for trust and cold start, .0056 without; MovieLens: the same).
PRIOR = np.array([0.4, 0.15, 0.02, 0.02, 0.4, 0.005, 0.0, -0.4, 0.4])
UNSEEN = 40.0  # events of one kind at which it is 1
_NO_BETS = [0.0] * len(KAPPAS)
_DAY = 86_400.0


@dataclass(slots=True)
class GainModel:
    """The regression: `weights` = `moments`⁻¹ · `products`; a plain value, changed in place by `learn`."""

    moments: Floats = field(default_factory=lambda: RIDGE * np.eye(len(PRIOR)))  # (D, D)
    products: Floats = field(default_factory=lambda: RIDGE * PRIOR)  # (D,)
    weights: Floats = field(default_factory=PRIOR.copy)  # (D,)
    outcomes: int = 0

    def learn(self, features: Sequence[float], outcome: float) -> None:
        """Take the outcome of one refresh, in B per event, with the features (D,) it was decided on."""
        x = np.asarray(features, dtype=np.float64)
        back = (1.0 - FORGET) * RIDGE
        self.moments = FORGET * self.moments + np.outer(x, x) + back * np.eye(len(PRIOR))
        self.products = FORGET * self.products + outcome * x + back * PRIOR
        self.weights = np.asarray(np.linalg.solve(self.moments, self.products), dtype=np.float64)
        self.weights[1] = max(0.0, self.weights[1])  # a crossed threshold is never a reason not to refresh
        self.outcomes += 1

    def expected(self, features: Floats) -> Floats:
        """Return the expected gain (n,) in B per event, within [−1, 1], for features (n, D)."""
        return np.clip(features @ self.weights, -1.0, 1.0)


def describe(
    states: Sequence[UserState], reasons: Sequence[RefreshReason | None], policy: Policy, alpha: float,
) -> Floats:
    """Return the features of n users, (n, D), each within [−1, 1].

    Args:
        reasons: the threshold each has crossed, None if none.
    """
    rows = []
    for state, reason in zip(states, reasons, strict=True):
        times = state.times
        cold = state.knowledge_version == 0
        span = times[-1] - times[0] if times else 0.0
        age = 0.0 if cold else max(0.0, state.event_time - state.knowledge_event_time)
        rows.append((
            1.0, priority(state, reason, policy) / 3.0 if reason is not None else 0.0,
            min(1.0, 0.5 * state.cusum / policy.drift_threshold), 0.0,
            min(1.0, (state.count - state.last_refresh_count) * _likeness(state) / UNSEEN),
            min(1.0, 0.5 * age / policy.ttl_s),
            min(1.0, log1p(_DAY * (len(times) - 1) / span) / log1p(1000.0)) if span > 0 else 1.0,
            state.trust, float(cold)))
    out = np.array(rows, dtype=np.float64).reshape(len(rows), len(PRIOR))
    wealth = np.array([s.log_wealth if len(s.log_wealth) == len(KAPPAS) else _NO_BETS for s in states])
    if rows:
        out[:, 3] = np.clip(mixture(wealth) / log(1.0 / alpha), -1.0, 1.0)
    return out


def _likeness(state: UserState) -> float:
    """Return the length of the short interest, an average of unit vectors: 1 = the newest items point one way."""
    return float(np.linalg.norm(np.frombuffer(state.short, dtype="<f4")))


def note_margins(state: UserState, values: Sequence[float], bound: float) -> tuple[list[float], float] | None:
    """Take margins, nats, of a user's events with the current knowledge; at its end, return the trial's outcome.

    Returns:
        The features the refresh was decided on and its gain in B per event; None while there is nothing to say.
    """
    outcome = None
    for value in values:
        margin = max(-1.0, min(1.0, value / bound))
        state.margins = [*state.margins, margin][-WINDOW:]
        trial = state.trial
        if trial is not None:
            trial.total += margin
            trial.events += 1
            if trial.events == WINDOW:
                outcome = trial.features, trial.total / WINDOW - trial.before
                state.trial = None
    return outcome


def begin_trial(state: UserState, features: Sequence[float]) -> None:
    """Note that new knowledge is taken into use; call while `state` still describes the old.

    Args:
        features: those the refresh was decided on; [] = not known, then there is no trial.
    """
    margins, state.margins, state.trial = state.margins, [], None
    if len(features) == len(PRIOR) and (margins or state.knowledge_version == 0):
        state.trial = Trial(list(features), sum(margins) / len(margins) if margins else 0.0)
