"""Choose thresholds on the training part of the timeline. Pure functions over plain arrays.

The drift threshold is chosen with the arithmetic that runs in streams (`alarms.watch`), on one half of the users, and
checked on the other half.
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
# More than 200 observations per user add little that other users do not.
MAX_OBSERVATIONS = 200
MAX_USERS = 20_000  # per half; with 20,000 the rate is known to a few percent
# Each user's history is shuffled up to 8 times, until about this many events are observed. That averages out the random
# order; the sampling of users remains. One pass over this many events takes about a second.
SHUFFLED_EVENTS = 150_000


@dataclass(frozen=True, slots=True)
class History:
    """One user's training events: item rows (n,) and event times (n,) seconds, oldest first."""

    rows: NDArray[np.intp]
    times: Floats


@dataclass(frozen=True, slots=True)
class DriftCalibration:
    """Population statistics of d, the threshold h, and the evidence for it.

    Args:
        mean, sd: mean and standard deviation of d on shuffled histories of the calibration users.
        threshold: h.
        stated: requested events per false alarm.
        false_alarm_every: events per false alarm at h on the calibration users' shuffled histories.
        observations: number of events in that count.
        alarms_observed_every: events per alarm at h on their histories in true order, i.e. how often drift is seen.
        check: rate of false alarms at h on the other half of the users; None if there was only one user.
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
    def check_passed(self) -> bool:
        """Whether the check is consistent with false alarms no more frequent than stated."""
        return self.check is None or self.check.high >= self.stated

    def evidence(self) -> dict[str, float]:
        """Return the figures for `Calibration.evidence`."""
        figures = {"drift_observations": float(self.observations), "drift_stated_every": self.stated,
                   "drift_alarms_observed_every": self.alarms_observed_every}
        if self.check is None:
            return figures
        check = self.check
        # JSON has no infinity: without an alarm, report the number of events as a lower bound.
        return figures | {
            "drift_check_users": float(check.users), "drift_check_events": float(check.events),
            "drift_check_alarms": float(check.alarms), "drift_check_every": min(check.every, float(check.events)),
            "drift_check_low": check.low, "drift_check_high": min(check.high, float(check.events)),
            "drift_check_held": float(self.check_passed)}


def shuffled(histories: Sequence[History], seed: int) -> list[History]:
    """Return the histories with each user's items in random order: the same behaviour without drift."""
    rng = np.random.default_rng(seed)
    return [History(rng.permutation(history.rows), history.times) for history in histories]


def split_users(histories: Sequence[History], first: int, seed: int) -> tuple[list[History], list[History]]:
    """Split the users with more than `first` events into two random halves; the first half gets the odd user."""
    usable = [history for history in histories if len(history.rows) > first]
    order = np.random.default_rng([seed, 1]).permutation(len(usable))
    cut = (len(usable) + 1) // 2
    parts = [[usable[place] for place in part[:MAX_USERS].tolist()] for part in (order[:cut], order[cut:])]
    return parts[0], parts[1]


@dataclass(frozen=True, slots=True)
class Null:
    """Behaviour without drift: item rows of `copies` shuffles of each user, one block of users after the other."""

    rows: list[Rows]
    copies: int

    @classmethod
    def of(cls, histories: Sequence[History], first: int, seed: int) -> Null:
        """Shuffle each user's items, repeatedly until there are about `SHUFFLED_EVENTS` events in all."""
        events = sum(min(len(history.rows) - first, MAX_OBSERVATIONS) for history in histories)
        copies = int(np.clip(SHUFFLED_EVENTS // max(1, events), 1, 8))
        rng = np.random.default_rng([seed, 2])
        limit = first + MAX_OBSERVATIONS
        return cls([rng.permutation(h.rows)[:limit] for _ in range(copies) for h in histories], copies)


def choose_threshold(null: Null, detector: Detector, stated: float, **watching: object) -> tuple[float, Watched]:
    """Return the smallest h with at most one alarm per `stated` events on `null`, and the alarms with this h.

    Args:
        detector: the other constants.
        watching: vectors, settings, first and cooldown of `alarms.watch`.
    """
    low, high = 0.01, 1000.0  # in standard deviations; a CUSUM of 200 events stays near or below 200 · 1.4 / 0.25
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

    The null is behaviour without drift: each user's training items in random order. On half of the users, h is the
    smallest threshold at which alarms on shuffled histories are no more frequent than stated. The other half checks h.

    Args:
        histories: training users; those with at most `first` events are not used.
        prior, slack: see Calibration.drift_prior and drift_slack.
        first: events before the first knowledge.
        cooldown: minimum number of a user's events between two refreshes.
        moments: population mean and sd of d to use; None = those of the calibration users' shuffled histories.

    Raises:
        DataError: no user has enough events.
    """
    chosen, others = split_users(histories, first, seed)
    null = Null.of(chosen, first, seed)
    watching = {"vectors": vectors, "settings": settings, "first": first, "cooldown": cooldown}
    quiet = Detector(0.0, 1.0, prior, slack, float("inf"))
    seen = watch(null.rows, detector=quiet, **watching)  # type: ignore[arg-type]
    if not np.isfinite(seen.mean):
        raise DataError(f"no user has more than {first} events on known items: nothing to calibrate drift on")
    mean, sd = moments or (seen.mean, max(seen.sd, 1e-3))
    threshold, seen = choose_threshold(null, replace(quiet, mean=mean, sd=sd), false_alarm_every, **watching)
    detector = Detector(mean, sd, prior, slack, threshold)
    false_alarms = rate(seen, null.copies)
    ordered = watch([h.rows[:first + MAX_OBSERVATIONS] for h in chosen], detector=detector, **watching)  # type: ignore[arg-type]
    check = None
    if others:
        other_null = Null.of(others, first, seed + 1)
        # h is estimated too: its uncertainty is that of the rate it was chosen at.
        variance = (float(np.log(false_alarms.high / false_alarms.every)) / 1.96) ** 2 if false_alarms.alarms else 1.0
        check = rate(watch(other_null.rows, detector=detector, **watching), other_null.copies, extra_variance=variance)  # type: ignore[arg-type]
    return DriftCalibration(
        mean, sd, threshold, false_alarm_every, min(false_alarms.every, float(false_alarms.events)),
        false_alarms.events, float(ordered.watched.sum()) / max(len(ordered.user), 1), check)


def choose_min_history(
    histories: Sequence[History], *, share: float = 0.5, minimum: int = 3, maximum: int = 10,
) -> int:
    """Return the number of events before the first knowledge.

    It is a `share` of the median user's number of events, so that typical users have knowledge for at least half of
    their events, within [minimum, maximum]: fewer than 3 items carry little information, more than 10 make users wait.
    """
    lengths = [len(history.rows) for history in histories]
    return int(np.clip(np.median(lengths) * share, minimum, maximum)) if lengths else minimum


def choose_margin_bound(margins: Sequence[Floats], *, minimum: float = 0.05) -> tuple[float, dict[str, float]]:
    """Return B, the bound at which the judge clips margins, and the evidence for it.

    B is a quantile of |margin|: the one that gives the most evidence against harmful knowledge, measured as the mean of
    the judge's largest log-wealth over the worst twentieth of users. A larger B makes every bet smaller; a smaller B
    hides how strong the worst contradictions are. At the 99% quantile no user of MovieLens-100K was contradicted in
    20,000 events. B is fixed before the stream begins, so the level of the test holds for any choice.

    Args:
        margins: margins of held-out users, nats, each user's in order.
        minimum: lower bound of B, nats.
    """
    size = np.abs(np.concatenate(margins)) if len(margins) else np.zeros(0)
    if not len(size):
        return 1.0, {"margins": 0.0}
    worst = max(1, len(margins) // 20)
    best = (-np.inf, 1.0)
    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        bound = max(minimum, float(np.quantile(size, share)))
        peaks = [float(mixture(np.cumsum(bets(user, bound), axis=0)).max()) for user in margins]
        best = max(best, (float(np.mean(sorted(peaks)[-worst:])), bound))
    together = np.concatenate(margins)
    return best[1], {
        "margins": float(len(together)), "margin_mean": float(together.mean()), "margin_sd": float(together.std()),
        "margin_negative_share": float((together < 0).mean()), "margin_worst_log_wealth": best[0]}
