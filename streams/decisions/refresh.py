"""Decide whether a user's knowledge is due for a refresh, for which reason, and with which priority."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.calibration import Calibration
from schemas.messages import RefreshReason
from schemas.settings import RefreshSettings
from streams.decisions.policies import REASONS, PolicyName
from streams.profile.state import UserState

# An unanswered request is repeated under a higher version after this many of the user's events or this time: a worker
# has most likely lost it. If not, one repeat per 10 minutes costs little.
PENDING_EVENTS = 200
PENDING_S = 600.0
# While no knowledge by the model in use has been seen, one request asks for it after this time, then after twice that.
PROBE_S = (5.0, 60.0)


@dataclass(slots=True)
class Arrival:
    """Whether the knowledge workers have the model in use: streams may know of a new one before they do.

    Until an update shows that they have it, knowledge of other models is not stale for all users at once: every request
    would be answered by the old model, so only a few are made, to find out. Times are wall clock, seconds.
    """

    at: float | None = None  # when the first knowledge by the model in use was seen
    probed_at: float = 0.0
    pause_s: float = 0.0  # until the next probe

    def allows(self, state: UserState, now: float) -> bool:
        """Return whether to ask for the user's knowledge because a model that is not in use made it."""
        if self.at is None:
            if 0.0 <= now - self.probed_at < self.pause_s:
                return False
            self.probed_at, self.pause_s = now, min(2 * self.pause_s, PROBE_S[1]) or PROBE_S[0]
            return True
        # One worker of several may still have the old model, and a user's requests always come to the same worker.
        return state.outdated_at < self.at or not 0.0 <= now - state.outdated_at < PENDING_S

    def note(self, now: float) -> None:
        """Note knowledge by the model in use."""
        if self.at is None:
            self.at = now


@dataclass(frozen=True, slots=True)
class Policy:
    """The refresh policy and its thresholds; see Calibration and RefreshSettings for meaning and units."""

    min_history: int
    ttl_s: float
    drift_threshold: float
    cooldown: int
    model_version: str
    name: PolicyName = "freshet"
    every: int = 20
    period_s: float = 86_400.0
    withdrawn: frozenset[str] = frozenset()  # model versions whose knowledge is no longer used
    arrival: Arrival = field(default_factory=Arrival)

    @property
    def reasons(self) -> frozenset[RefreshReason]:
        """The reasons the policy acts on, in addition to its schedule if it has one."""
        return REASONS[self.name]

    @classmethod
    def of(cls, calibration: Calibration, settings: RefreshSettings, model_version: str = "") -> Policy:
        """Return the policy with calibrated thresholds; settings override them.

        A model that makes no knowledge gets the policy "never", whatever the settings select.

        Args:
            model_version: version of the fitted model in use; knowledge of another is stale. "" = do not compare.
        """
        return cls(
            calibration.min_history if settings.min_history is None else settings.min_history,
            calibration.ttl_s if settings.ttl_s is None else settings.ttl_s,
            calibration.drift_threshold if settings.drift_threshold is None else settings.drift_threshold,
            settings.cooldown, model_version, settings.policy if calibration.knowledge else "never", settings.every,
            settings.period_s)


def decide(state: UserState, now: float, policy: Policy) -> RefreshReason | None:
    """Return the reason to generate the user's knowledge now, None if there is none.

    The first request waits for enough history. Only one request is outstanding at a time, unless a schedule makes the
    next one due. Requests that are not scheduled respect the cooldown. If several reasons apply, the order is
    contradiction, drift, staleness.

    Args:
        state: with the newest events folded.
        now: wall clock, seconds; used to repeat requests that were not answered, or not by the model in use.
    """
    pending = state.pending
    if pending is None and state.knowledge_version == 0:
        return "cold_start" if state.count >= policy.min_history and "cold_start" in policy.reasons else None
    if _scheduled(state, policy):
        return "stale" if state.knowledge_version else "cold_start"
    if pending is not None:
        # Asked for in the future: the clock was set back, or the state comes from a host whose clock is ahead. Waiting
        # until it has caught up would cost hours, a second request costs one call.
        lost = state.count - pending.count >= PENDING_EVENTS or abs(now - pending.requested_at) >= PENDING_S
        return pending.reason if lost and policy.name != "never" else None
    reason = threshold_crossed(state, policy, now)
    return reason if state.count - state.last_refresh_count >= policy.cooldown else None


def threshold_crossed(state: UserState, policy: Policy, now: float) -> RefreshReason | None:
    """Return the most important of the policy's reasons that applies to the user's current knowledge."""
    if state.contradicted_at and "contradiction" in policy.reasons:
        return "contradiction"
    if state.drifted and "drift" in policy.reasons:
        return "drift"
    if "stale" in policy.reasons and (
            state.event_time - state.knowledge_event_time > policy.ttl_s
            or (outdated(state.model_version, policy) and policy.arrival.allows(state, now))):
        return "stale"
    return None


def _scheduled(state: UserState, policy: Policy) -> bool:
    """Return whether a schedule that counts events makes a request due. (`Planner.nightly_requests` does `nightly`.)"""
    if policy.name == "always":
        return state.count > state.last_refresh_count
    return policy.name == "every-n" and state.count - state.last_refresh_count >= policy.every


def outdated(made_by: str, policy: Policy) -> bool:
    """Return whether ranking does not use knowledge of this version: by another fitted model, or withdrawn.

    Args:
        made_by: a model version, with the name of an adapter after a "+" if it had one; "" = not known.
    """
    if not made_by or not policy.model_version:
        return False
    return made_by in policy.withdrawn or made_by.split("+", maxsplit=1)[0] != policy.model_version


def priority(state: UserState, reason: RefreshReason, policy: Policy) -> float:
    """Return the priority of a refresh, without a unit: when capacity is short, larger ones go first.

    Contradicted knowledge: 3, because it does harm. No knowledge: 2. Drift: 1 to 2, growing with the CUSUM's excess
    over its threshold. Stale knowledge: 0 to 1, growing with its excess age.
    """
    if reason == "contradiction":
        return 3.0
    if reason == "cold_start":
        return 2.0
    if reason == "drift":
        return 1.0 + min(1.0, max(0.0, state.cusum / policy.drift_threshold - 1.0))
    age = state.event_time - state.knowledge_event_time
    return min(1.0, max(0.0, age / policy.ttl_s - 1.0))
