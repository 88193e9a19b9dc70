"""Shared test data: a small catalogue, settings and events."""

from __future__ import annotations

import numpy as np

from schemas.calibration import Calibration
from schemas.settings import RefreshSettings, Settings, StateSettings
from streams.decisions.planner import Planner
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event

N_ITEMS, DIM = 20, 8
CALIBRATION = Calibration(
    min_history=3, ttl_s=1000.0, drift_mean=0.5, drift_sd=0.2, drift_prior=10.0, drift_slack=0.5, drift_threshold=5.0,
    drift_false_alarm_every=500.0, margin_bound=2.0, epsilon=0.1)


def item_vectors() -> ItemVectors:
    rng = np.random.default_rng(7)
    return ItemVectors([f"i{n}" for n in range(N_ITEMS)], rng.normal(size=(N_ITEMS, DIM)).astype(np.float32))


def settings(**refresh: object) -> Settings:
    return Settings(state=StateSettings(history=6, seen=8, event_ids=16), refresh=RefreshSettings(**refresh))


def planner(calibration: Calibration = CALIBRATION, **refresh: object) -> Planner:
    return Planner(item_vectors(), calibration, settings(**refresh))


def event(n: int, user: str = "u", *, item: int | None = None, time: float | None = None, backfill: bool = False,
          offset: int | None = None, kind: str = "view") -> Event:
    return Event(user, f"i{n % N_ITEMS if item is None else item}", float(n) if time is None else time, kind, f"e{n}",
                 n if offset is None else offset, 1000.0 + n, backfill)
