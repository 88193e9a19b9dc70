"""Finds the setting with which a policy makes a given number of LLM calls, so that policies compare at equal cost.

The policy `freshet` keeps to a budget by itself (`refresh.calls_per_1000`). Each other policy has one setting (its
knob). It is searched until the calls on the played events meet the budget:

| policy | knob | calls are counted by |
|---|---|---|
| `every-n` | `refresh.every` | the planner alone |
| `nightly` | `refresh.period_s` | the planner alone |
| `drift` | `refresh.drift_threshold` | the planner alone |
| `judge` | `refresh.alpha` | a replay of some users, because its calls depend on margins |

For the first three policies, the planner alone makes exactly the requests that it makes in a replay (`play.rehearse`).
The search uses the same events that are then played. That favours these policies over `freshet`, which does not know
the future.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from schemas.errors import FreshetError
from schemas.settings import RefreshSettings

TOLERANCE = 0.01  # relative; a tenth of the narrowest interval among the points in docs/frontier.md
MAX_TRIES = 14


@dataclass(frozen=True, slots=True)
class Knob:
    """The setting that decides how often a policy asks. If `rising`, a larger value means more requests."""

    name: str
    low: float
    high: float
    rising: bool = False
    whole: bool = False


KNOBS: dict[str, Knob] = {
    "every-n": Knob("every", 1, 1000, whole=True),
    "nightly": Knob("period_s", 60.0, 10 * 365 * 86_400.0),
    "drift": Knob("drift_threshold", 0.01, 1000.0),  # standard deviations; the range that calibration searches
    "judge": Knob("alpha", 1e-4, 0.999, rising=True),
}


def meet_budget(
    settings: RefreshSettings, budget: float, calls: Callable[[RefreshSettings], float],
) -> tuple[RefreshSettings, float]:
    """Return the settings whose calls meet `budget`, and their number of calls per 1,000 events.

    If no value meets the budget, the result is the nearest end of the knob's range. For example, every user with
    knowledge costs at least one call.

    Args:
        settings: name a policy in `KNOBS`.
        budget: calls per 1,000 events.
        calls: counts the calls per 1,000 events for given settings.

    Raises:
        FreshetError: the policy has no knob, or the budget is not in (0, 1000].
    """
    if not 0 < budget <= 1000:
        raise FreshetError(f"the budget must be more than 0 and at most 1,000 calls per 1,000 events, not {budget:g}")
    knob = KNOBS.get(settings.policy)
    if knob is None:
        raise FreshetError(f"policy {settings.policy} cannot keep to a budget: omit --budget")
    best: tuple[float, RefreshSettings, float] | None = None
    low, high = knob.low, knob.high
    for _ in range(MAX_TRIES):
        value = math.sqrt(low * high)
        if knob.whole:
            value = round(value)
        tried = with_value(settings, knob, value)
        found = calls(tried)
        off = abs(math.log(max(found, 1e-9) / budget))
        if best is None or off < best[0]:
            best = (off, tried, found)
        if off <= TOLERANCE or high / low < 1.001 or (knob.whole and high - low <= 1):
            break
        if (found > budget) == knob.rising:
            high = value
        else:
            low = value
    assert best is not None  # noqa: S101 - MAX_TRIES > 0
    return best[1], best[2]


def with_value(settings: RefreshSettings, knob: Knob, value: float) -> RefreshSettings:
    """Return the settings with the knob set to a value."""
    change: dict[str, Any] = {knob.name: int(value) if knob.whole else value}
    return replace(settings, **change)
