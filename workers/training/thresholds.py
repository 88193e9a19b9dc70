"""Chooses the drift threshold of a fitted model again, without fitting: `freshet calibrate` without the printing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.data import dataset as data
from models.data.evidence import evidence
from models.data.loading import load_dataset
from schemas.artifacts import Artifact
from schemas.calibration import Calibration, Recalibration
from schemas.errors import DataError
from schemas.files import write_whole
from schemas.settings import Settings
from streams.calibration.thresholds import DriftCalibration, History, calibrate_drift
from streams.profile.catalogue import ItemVectors


@dataclass(frozen=True, slots=True)
class Result:
    """A drift calibration and what it is based on."""

    drift: DriftCalibration
    before: Calibration
    data_hash: str
    unknown: float  # share of events whose item the model does not know

    def require(self) -> None:
        """Raise an error if the threshold must not be used.

        Raises:
            DataError: no users were left to check on, or they had more false alarms than stated.
        """
        check, stated = self.drift.check, self.drift.stated
        if check is None:
            raise DataError("only one user has enough events, so there are no users to check the threshold on. Nothing "
                            "was changed; provide more data")
        if not self.drift.check_passed:
            raise DataError(
                f"the check failed: the users the threshold was not chosen on have a false alarm every "
                f"{check.every:.0f} events (95% interval {check.low:.0f} to {check.high:.0f}), more often than the "
                f"stated {stated:g}. Nothing was changed. There are too few users for how much they differ: provide "
                f"more data, or try --false-alarm-every {2 * stated:g}")


def recalibrate(
    artifact: Artifact, folder: Path, settings: Settings, false_alarm_every: float, *, seed: int = 0,
) -> Result:
    """Return the threshold for one false alarm per `false_alarm_every` events, with its check. Nothing is changed.

    Raises:
        DataError: the model has no knowledge, the data cannot be used, or no user has enough events on items that the
            model knows.
    """
    before = artifact.fitted_calibration()
    if not before.knowledge:
        raise DataError(f"model {artifact.model_version} has no knowledge of users: nothing is ever refreshed")
    dataset = evidence(load_dataset(folder, settings.events), settings.events.meaning)
    events = dataset.events
    if dataset.hash == artifact.card.data_hash:  # events after the split must stay unseen
        events = events[: int(np.searchsorted(events.time, artifact.card.split_time, side="right"))]
    vectors = ItemVectors.load(artifact)
    rows = np.array([vectors.rows.get(item, vectors.unknown) for item in dataset.items], dtype=np.intp)
    first = before.min_history if settings.refresh.min_history is None else settings.refresh.min_history
    drift = calibrate_drift(
        by_user(events, rows, len(dataset.users)), vectors, settings.state, prior=before.drift_prior,
        slack=before.drift_slack, false_alarm_every=false_alarm_every, first=max(1, first),
        cooldown=settings.refresh.cooldown, seed=seed, moments=(before.drift_mean, before.drift_sd))
    return Result(drift, before, dataset.hash, float((rows[events.item] == vectors.unknown).mean()))


def by_user(events: data.Events, rows: np.ndarray, users: int) -> list[History]:
    """Return the users' histories with items as `rows[item]`. Users without events are skipped."""
    order = np.argsort(events.user, kind="stable")   # events are in time order
    bounds = np.cumsum(np.bincount(events.user, minlength=users))[:-1]
    items, times = np.split(rows[events.item[order]], bounds), np.split(events.time[order], bounds)
    return [History(item, when) for item, when in zip(items, times, strict=True) if len(item)]


def report(result: Result) -> str:
    """Return the figures as text."""
    drift, check = result.drift, result.drift.check
    lines = [
        f"threshold h = {drift.threshold:.3g} standard deviations (fitted: {result.before.drift_threshold:.3g})",
        f"  stated:            one false alarm every {drift.stated:g} events of a user",
        f"  calibration users: every {drift.false_alarm_every:.0f} events, {drift.observations:,} observed",
    ]
    if check is not None:
        shown = f"every {check.every:.0f} events" if check.alarms else f"none in {check.events:,} events"
        lines.append(
            f"  other users:       {shown}, 95% interval {check.low:.0f} to {check.high:.0f}; {check.alarms:,} alarms "
            f"of {check.users:,} users, {check.events:,} observed: {'held' if drift.check_passed else 'NOT HELD'}")
    lines.append(f"  in true order:     every {drift.alarms_observed_every:.0f} events: how often drift is detected")
    if result.unknown:
        lines.append(f"  {result.unknown:.1%} of the events are on items that the model does not know")
    return "\n".join(lines)


def write(artifact: Artifact, result: Result) -> Path:
    """Write the result next to the model's folder, atomically, and return its path."""
    drift = result.drift
    content = Recalibration(
        model_version=artifact.model_version, calibration_hash=artifact.card.files["calibration.json"],
        data_hash=result.data_hash, calibrated_at=time.time(), drift_threshold=drift.threshold,
        drift_false_alarm_every=drift.false_alarm_every, evidence=drift.evidence())
    write_whole(artifact.recalibration, content.model_dump_json(indent=2).encode() + b"\n")
    return artifact.recalibration
