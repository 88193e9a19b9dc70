"""Is it time to generate a user's knowledge anew, why, and how much is to be gained?"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.calibration import Calibration
from schemas.messages import RefreshReason
from schemas.settings import RefreshSettings
from streams.decisions.policies import REASONS, PolicyName
from streams.profile.state import UserState

# A request without an answer is made again, under a higher version, after this many of the user's events or this time:
# whichever worker had it has most likely lost it, and one repeat per 10 minutes costs little if it has not.
PENDING_EVENTS = 200
PENDING_S = 600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Which rule, and its thresholds; see Calibration and RefreshSettings for meaning and units."""

    min_history: int
    ttl_s: float
    drift_threshold: float
    cooldown: int
    model_version: str
    name: PolicyName = "freshet"
    every: int = 20
    period_s: float = 86_400.0

    @property
    def reasons(self) -> frozenset[RefreshReason]:
        """What the policy acts on, beside its schedule if it has one."""
        return REASONS[self.name]

    @classmethod
    def of(cls, calibration: Calibration, settings: RefreshSettings, model_version: str = "") -> Policy:
        """Return the policy as calibrated, each threshold overridden by the settings where they give one.

        A model without knowledge of users has nothing to refresh: "never", whatever the settings say.

        Args:
            model_version: of the fitted model in use; knowledge of another is stale. "" = do not compare.
        """
        return cls(
            calibration.min_history if settings.min_history is None else settings.min_history,
            calibration.ttl_s if settings.ttl_s is None else settings.ttl_s,
            calibration.drift_threshold if settings.drift_threshold is None else settings.drift_threshold,
            settings.cooldown, model_version, settings.policy if calibration.knowledge else "never", settings.every,
            settings.period_s)


def decide(state: UserState, now: float, policy: Policy) -> RefreshReason | None:
    """Return why the user's knowledge should be generated now, None if it should not.

    The first generation waits for enough history. One request is out at a time, but where a schedule says that the next
    is due. Later ones, other than by schedule, keep the cooldown. Of several reasons the weightiest counts:
    contradiction, drift, staleness.

    Args:
        state: with the newest events folded.
        now: wall clock, seconds; only bounds how long an unanswered request is waited for.
    """
    pending = state.pending
    if pending is None and state.knowledge_version == 0:
        return "cold_start" if state.count >= policy.min_history and "cold_start" in policy.reasons else None
    if _scheduled(state, policy):
        return "stale" if state.knowledge_version else "cold_start"
    if pending is not None:
        lost = state.count - pending.count >= PENDING_EVENTS or now - pending.requested_at >= PENDING_S
        return pending.reason if lost and policy.name != "never" else None
    reason = threshold_crossed(state, policy)
    return reason if state.count - state.last_refresh_count >= policy.cooldown else None


def threshold_crossed(state: UserState, policy: Policy) -> RefreshReason | None:
    """Return the weightiest of the policy's reasons that says the user's knowledge has had its time."""
    if state.contradicted_at and "contradiction" in policy.reasons:
        return "contradiction"
    if state.drifted and "drift" in policy.reasons:
        return "drift"
    if "stale" in policy.reasons and (
            state.event_time - state.knowledge_event_time > policy.ttl_s or _other_model(state, policy)):
        return "stale"
    return None


def _scheduled(state: UserState, policy: Policy) -> bool:
    """Tell whether a schedule that counts events says it is time. (`nightly` is asked before the event: policies.)"""
    if policy.name == "always":
        return state.count > state.last_refresh_count
    return policy.name == "every-n" and state.count - state.last_refresh_count >= policy.every


def _other_model(state: UserState, policy: Policy) -> bool:
    """Tell whether the knowledge is another fitted model's (an adapter's name may follow a "+")."""
    known, current = state.model_version, policy.model_version
    return bool(known and current) and known.split("+")[0] != current


def priority(state: UserState, reason: RefreshReason, policy: Policy) -> float:
    """Return the expected gain in no unit but comparable: larger first when capacity is short.

    Wrong knowledge costs most (3); none costs what knowledge is worth (2); drift counts by how far the CUSUM stands
    above its threshold, 1 to 2; old knowledge by how far it is past its time, 0 to 1.
    """
    if reason == "contradiction":
        return 3.0
    if reason == "cold_start":
        return 2.0
    if reason == "drift":
        return 1.0 + min(1.0, max(0.0, state.cusum / policy.drift_threshold - 1.0))
    age = state.event_time - state.knowledge_event_time
    return min(1.0, max(0.0, age / policy.ttl_s - 1.0))
