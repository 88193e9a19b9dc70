"""From a user's rows to facts. Pure; titles come from a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from schemas.calibration import Calibration
from schemas.settings import RefreshSettings
from streams.detection.trust import mixture
from streams.profile.state import UserState, loads
from workers.views.facts import (
    DriftStatistic,
    JudgedMargin,
    NamedItem,
    PastEvent,
    Refresh,
    ShownList,
    StateStep,
    TrustState,
    UserFacts,
)
from workers.views.reading.records import KeptList, KeptMargin, KeptRefresh, Step

Titles = Callable[[str], str]
"""Item id → its title, "" = not known."""


@dataclass(frozen=True, slots=True)
class UserLimits:
    """What statistics are compared with; None = no model is fitted."""

    drift: float | None
    bound: float | None
    alpha: float

    @classmethod
    def of(cls, settings: RefreshSettings, fitted: Calibration | None) -> UserLimits:
        """Return the limits that streams uses: a setting goes before what was fitted."""
        drift = settings.drift_threshold
        if drift is None and fitted is not None:
            drift = fitted.drift_threshold
        return cls(drift, None if fitted is None else fitted.margin_bound, settings.alpha)


def shown_lists(kept: Sequence[KeptList], title: Titles) -> tuple[ShownList, ...]:
    """Return a user's lists, newest first."""
    return tuple(ShownList(
        items=tuple(NamedItem(item.item_id, title(item.item_id), item.score, one.written.get(item.item_id, ""))
                    for item in one.items),
        reference=tuple(NamedItem(item, title(item)) for item in one.reference),
        source=one.source, fallback=one.fallback, reason=one.reason, lagrange=one.lagrange, kl=one.kl,
        epsilon=one.epsilon, knowledge_version=one.knowledge_version, knowledge_age_s=one.knowledge_age_s,
        knowledge_behind=one.knowledge_behind, model_version=one.model_version, event_time=one.event_time,
        count=one.count, caused_at=one.caused_at, ranked_at=one.ranked_at, experiment=one.experiment, arm=one.arm,
        read_at=one.read_at) for one in reversed(kept))


def refreshes(kept: Mapping[int, KeptRefresh], lists: Sequence[KeptList], title: Titles) -> tuple[Refresh, ...]:
    """Return a user's refreshes, newest version first.

    Args:
        lists: the user's, oldest first; what a version changed is read off the first list that used it.
    """
    out = []
    for version in sorted(kept, reverse=True):
        asked, made = kept[version].asked, kept[version].made
        cause = made or asked
        if cause is None:
            continue
        gained, lost = _changed(version, lists)
        out.append(Refresh(
            version=version, reason=cause.reason, event_time=cause.event_time, count=cause.count,
            caused_at=cause.caused_at, requested_at=asked.requested_at if asked else None,
            priority=asked.priority if asked else None, generated_at=made.generated_at if made else None,
            model_version=made.model_version if made else None,
            freshness_s=max(0.0, made.generated_at - made.caused_at) if made else None,
            written=made.written if made else None,
            gained=None if gained is None else tuple(NamedItem(item, title(item)) for item in gained),
            lost=None if lost is None else tuple(NamedItem(item, title(item)) for item in lost),
            seconds=made.spent_s if made else None, tokens=made.spent_tokens if made else None))
    return tuple(out)


def _changed(version: int, lists: Sequence[KeptList]) -> tuple[list[str] | None, list[str] | None]:
    for before, after in pairwise(lists):
        if after.knowledge_version == version and before.knowledge_version != version:
            had, has = before.shows, after.shows
            return [item for item in has if item not in had], [item for item in had if item not in has]
    return None, None


def judged_margins(kept: Sequence[tuple[float, KeptMargin]], title: Titles) -> tuple[JudgedMargin, ...]:
    """Return a user's margins, newest first."""
    return tuple(JudgedMargin(one.event_id, one.item_id, title(one.item_id), one.count, one.value,
                              one.knowledge_version, at) for at, one in reversed(kept))


def state_steps(kept: Sequence[Step]) -> tuple[StateStep, ...]:
    """Return how a user's statistics went, oldest first."""
    return tuple(StateStep(one.count, one.drift, one.log_wealth, one.trust) for one in kept)


def user_facts(data: bytes, updated_at: float, limits: UserLimits, title: Titles) -> UserFacts:
    """Return the facts of a stored state.

    Raises:
        FreshetError: the bytes are no state, or a newer release's.
    """
    state = loads(data)
    return UserFacts(
        count=state.count, duplicates=state.duplicates, late=state.late, too_late=state.too_late,
        unknown_items=state.unknown_items, history=_history(state, title), seen=len(state.seen),
        drift=DriftStatistic(state.cusum, limits.drift, state.drifted, state.drift_n, state.drift_mean),
        trust=TrustState(
            trust=state.trust, standing=state.standing, log_wealth=_log_wealth(state.log_wealth),
            log_limit=-math.log(limits.alpha), help_log_wealth=_log_wealth(state.help_wealth),
            contradicted_at=state.contradicted_at, margins=tuple(state.margins), bound=limits.bound),
        knowledge_version=state.knowledge_version, knowledge_count=state.knowledge_count,
        knowledge_event_time=state.knowledge_event_time, model_version=state.model_version,
        pending=state.pending.version if state.pending else 0,
        pending_reason=state.pending.reason if state.pending else "", event_time=state.event_time,
        updated_at=updated_at)


def _history(state: UserState, title: Titles) -> tuple[PastEvent, ...]:
    rows = zip(state.items, state.types, state.times, state.counts, strict=True)
    return tuple(PastEvent(item, title(item), kind, at, count) for item, kind, at, count in list(rows)[::-1])


def _log_wealth(per_kappa: Sequence[float]) -> float:
    return float(mixture(np.array(per_kappa))) if per_kappa else 0.0
