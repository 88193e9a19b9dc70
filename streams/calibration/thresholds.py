"""When to act, learned from the training part of the timeline instead of guessed. Pure functions over plain arrays.

The drift threshold is chosen on the very arithmetic that runs in the stream (`alarms.watch`), on one half of the users,
and checked on the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError
from schemas.settings import StateSettings
from streams.calibration.alarms import Rate, Rows, Watched, rate, watch
from streams.detection.drift import Detector
from streams.detection.trust import bets, mixture
from streams.profile.catalogue import ItemVectors

Floats = NDArray[np.float64]
# Past 200 observations of one user more of them say little that others do not.
MAX_OBSERVATIONS = 200
MAX_USERS = 20_000  # of each half; with 20,000 the rate is known to a few percent
# Each user is shuffled as often as it takes to watch so many events, at most 8 times: chance in the order goes, chance
# in the users stays. One pass over so many takes about a second.
WATCHED = 150_000


@dataclass(frozen=True, slots=True)
class History:
    """One user's training events: item rows (n,) and event times (n,) seconds, oldest first."""

    rows: NDArray[np.intp]
    times: Floats


@dataclass(frozen=True, slots=True)
class DriftCalibration:
    """Population figures of d, the threshold h, and the evidence for it.

    Args:
        mean, sd: of d on shuffled histories of the calibration users.
        threshold: h.
        stated: events per false alarm that were asked for.
        false_alarm_every: events per false alarm at h on the calibration users' shuffled histories.
        observations: how many events that was counted on.
        alarms_observed_every: the same on their histories in true order: how often drift is seen.
        check: the false alarms at h on users the calibration has not seen; None where there was only one user.
    """

    mean: float
    sd: float
    threshold: float
    stated: float
    false_alarm_every: float
    observations: int
    alarms_observed_every: float
    check: Rate | None

    @property
    def held(self) -> bool:
        """Whether the check leaves it possible that false alarms are no more frequent than stated."""
        return self.check is None or self.check.high >= self.stated

    def evidence(self) -> dict[str, float]:
        """Return the figures for `Calibration.evidence`."""
        figures = {"drift_observations": float(self.observations), "drift_stated_every": self.stated,
                   "drift_alarms_observed_every": self.alarms_observed_every}
        if self.check is None:
            return figures
        check = self.check
        # Infinity is no JSON: without an alarm the events seen stand for "at least".
        return figures | {
            "drift_check_users": float(check.users), "drift_check_events": float(check.events),
            "drift_check_alarms": float(check.alarms), "drift_check_every": min(check.every, float(check.events)),
            "drift_check_low": check.low, "drift_check_high": min(check.high, float(check.events)),
            "drift_check_held": float(self.held)}


def shuffled(histories: Sequence[History], seed: int) -> list[History]:
    """Return the histories with each user's items in random order: behaviour without drift, all else equal."""
    rng = np.random.default_rng(seed)
    return [History(rng.permutation(history.rows), history.times) for history in histories]


def halves(histories: Sequence[History], first: int, seed: int) -> tuple[list[History], list[History]]:
    """Return two halves, at random, of the users with more than `first` events; the first has the odd one."""
    usable = [history for history in histories if len(history.rows) > first]
    order = np.random.default_rng([seed, 1]).permutation(len(usable))
    cut = (len(usable) + 1) // 2
    parts = [[usable[place] for place in part[:MAX_USERS].tolist()] for part in (order[:cut], order[cut:])]
    return parts[0], parts[1]


@dataclass(frozen=True, slots=True)
class Null:
    """Behaviour without drift: `copies` shuffles of each of some users, item rows, one block after the other."""

    rows: list[Rows]
    copies: int

    @classmethod
    def of(cls, histories: Sequence[History], first: int, seed: int) -> Null:
        """Shuffle each user's items, as often as it takes to watch about `WATCHED` events in all."""
        events = sum(min(len(history.rows) - first, MAX_OBSERVATIONS) for history in histories)
        copies = int(np.clip(WATCHED // max(1, events), 1, 8))
        rng = np.random.default_rng([seed, 2])
        limit = first + MAX_OBSERVATIONS
        return cls([rng.permutation(h.rows)[:limit] for _ in range(copies) for h in histories], copies)


def choose_threshold(null: Null, detector: Detector, stated: float, **watching: object) -> tuple[float, Watched]:
    """Return the smallest h with at most one alarm per `stated` events on `null`, and what was seen with it.

    Args:
        detector: its other constants.
        watching: vectors, settings, first and cooldown of `alarms.watch`.
    """
    low, high = 0.01, 1000.0  # in standard deviations; the CUSUM of 200 events cannot pass 200 · 1.4 / 0.25 by much
    best = watch(null.rows, detector=replace(detector, threshold=high), **watching)  # type: ignore[arg-type]
    while high / low > 1.003:
        middle = float(np.sqrt(low * high))
        seen = watch(null.rows, detector=replace(detector, threshold=middle), **watching)  # type: ignore[arg-type]
        if len(seen.user) * stated > seen.watched.sum():
            low = middle
        else:
            high, best = middle, seen
    return high, best


def calibrate_drift(
    histories: Sequence[History], vectors: ItemVectors, settings: StateSettings, *, prior: float, slack: float,
    false_alarm_every: float, first: int, cooldown: int = 5, seed: int = 0,
    moments: tuple[float, float] | None = None,
) -> DriftCalibration:
    """Choose the CUSUM threshold: at most one false alarm per `false_alarm_every` events of a user.

    The null is behaviour without drift: each user's training items in random order. Half of the users choose h, the
    smallest threshold at which alarms on their shuffled histories are no more frequent than stated; the others check
    it.

    Args:
        histories: training users; those with no event beyond `first` say nothing.
        prior, slack: see Calibration.drift_prior and drift_slack.
        first: events before knowledge is there.
        cooldown: events of a user between two refreshes, at least.
        moments: population mean and sd of d to keep; None = those of the calibration users' shuffled histories.

    Raises:
        DataError: no user has enough events.
    """
    chosen, others = halves(histories, first, seed)
    null = Null.of(chosen, first, seed)
    watching = {"vectors": vectors, "settings": settings, "first": first, "cooldown": cooldown}
    quiet = Detector(0.0, 1.0, prior, slack, float("inf"))
    seen = watch(null.rows, detector=quiet, **watching)  # type: ignore[arg-type]
    if not np.isfinite(seen.mean):
        raise DataError(f"no user has more than {first} events on known items: nothing to calibrate drift on")
    mean, sd = moments or (seen.mean, max(seen.sd, 1e-3))
    threshold, seen = choose_threshold(null, replace(quiet, mean=mean, sd=sd), false_alarm_every, **watching)
    detector = Detector(mean, sd, prior, slack, threshold)
    found = rate(seen, null.copies)
    ordered = watch([h.rows[:first + MAX_OBSERVATIONS] for h in chosen], detector=detector, **watching)  # type: ignore[arg-type]
    check = None
    if others:
        again = Null.of(others, first, seed + 1)
        # h is itself estimated: its uncertainty is that of the rate it was chosen at.
        variance = (float(np.log(found.high / found.every)) / 1.96) ** 2 if found.alarms else 1.0
        check = rate(watch(again.rows, detector=detector, **watching), again.copies, extra_variance=variance)  # type: ignore[arg-type]
    return DriftCalibration(
        mean, sd, threshold, false_alarm_every, min(found.every, float(found.events)), found.events,
        float(ordered.watched.sum()) / max(len(ordered.user), 1), check)


def choose_min_history(histories: Sequence[History], *, share: float = 0.5, least: int = 3, most: int = 10) -> int:
    """Return how many events must be there before the first knowledge.

    The criterion: knowledge should be there for at least half of each typical user's events, so a `share` of the median
    user's number of events, within [least, most]: fewer than 3 items say next to nothing, more than 10 make users wait.
    """
    lengths = [len(history.rows) for history in histories]
    return int(np.clip(np.median(lengths) * share, least, most)) if lengths else least


def choose_margin_bound(margins: Sequence[Floats], *, least: float = 0.05) -> tuple[float, dict[str, float]]:
    """Return B, the bound at which the judge clips margins, and the evidence for it.

    B is the quantile of |margin| under which most evidence gathers against the knowledge of those it serves worst: the
    highest mean, over the worst twentieth of users, of the judge's largest log-wealth. A larger B makes every bet
    smaller, a smaller one forgets how bad the worst contradictions are. At the 99% quantile no user of MovieLens-100K
    was contradicted in 20,000 events. B is fixed before the stream begins, so the test's level holds for any choice.

    Args:
        margins: held-out users' margins, nats, each user's in order.
        least: B is at least this, nats.
    """
    size = np.abs(np.concatenate(margins)) if len(margins) else np.zeros(0)
    if not len(size):
        return 1.0, {"margins": 0.0}
    worst = max(1, len(margins) // 20)
    best = (-np.inf, 1.0)
    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        bound = max(least, float(np.quantile(size, share)))
        peaks = [float(mixture(np.cumsum(bets(user, bound), axis=0)).max()) for user in margins]
        best = max(best, (float(np.mean(sorted(peaks)[-worst:])), bound))
    together = np.concatenate(margins)
    return best[1], {
        "margins": float(len(together)), "margin_mean": float(together.mean()), "margin_sd": float(together.std()),
        "margin_negative_share": float((together < 0).mean()), "margin_worst_log_wealth": best[0]}
