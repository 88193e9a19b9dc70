"""A policy's threshold for a number of LLM calls: what makes policies comparable at equal cost.

`freshet` keeps to a budget by itself (`refresh.calls_per_1000`). The others have one knob each, and it is turned until
the calls on the played events meet the budget:

| policy | knob | calls are counted by |
|---|---|---|
| `every-n` | `refresh.every` | the planner alone |
| `nightly` | `refresh.period_s` | the planner alone |
| `drift` | `refresh.drift_threshold` | the planner alone |
| `judge` | `refresh.alpha` | a replay of some users, since its calls depend on margins |

The planner alone asks for exactly what it asks for in a replay of those policies (`play.rehearse`). That the knob is
turned on the very events that are played favours them over `freshet`, which does not know what comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from schemas.errors import FreshetError
from schemas.settings import RefreshSettings

TOLERANCE = 0.01  # of the calls: a tenth of the narrowest interval that the frontier's points have
MAX_TRIES = 14


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting that decides how often a policy asks; `rising`: a larger value asks more often."""

    name: str
    low: float
    high: float
    rising: bool = False
    whole: bool = False


KNOBS: dict[str, Knob] = {
    "every-n": Knob("every", 1, 1000, whole=True),
    "nightly": Knob("period_s", 60.0, 10 * 365 * 86_400.0),
    "drift": Knob("drift_threshold", 0.01, 1000.0),  # standard deviations, as calibration searches
    "judge": Knob("alpha", 1e-4, 0.999, rising=True),
}


def within(
    settings: RefreshSettings, budget: float, calls: Callable[[RefreshSettings], float],
) -> tuple[RefreshSettings, float]:
    """Return the settings with their policy's knob turned to `budget`, and the calls per 1,000 events counted so.

    Where no value meets the budget the nearest end of the knob is returned: `once` costs a call per user, and no value
    asks for less than that.

    Args:
        settings: name a policy in `KNOBS`.
        budget: calls per 1,000 events.
        calls: counts them for some settings.

    Raises:
        FreshetError: the policy has no knob, or the budget is not above 0.
    """
    if not 0 < budget <= 1000:
        raise FreshetError(f"a budget is more than 0 and at most 1,000 calls per 1,000 events, not {budget:g}")
    knob = KNOBS.get(settings.policy)
    if knob is None:
        raise FreshetError(f"policy {settings.policy} asks as often as it asks: leave the budget out")
    best: tuple[float, RefreshSettings, float] | None = None
    low, high = knob.low, knob.high
    for _ in range(MAX_TRIES):
        value = math.sqrt(low * high)
        if knob.whole:
            value = round(value)
        tried = turned(settings, knob, value)
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


def turned(settings: RefreshSettings, knob: Knob, value: float) -> RefreshSettings:
    """Return the settings with a knob at a value."""
    change: dict[str, Any] = {knob.name: int(value) if knob.whole else value}
    return replace(settings, **change)
