"""Freshet's profile stage in the benchmark: the real app, with a meter around its planner.

The records have the backfill header, so they are only folded and cause no requests to the other workers. New users
start with the benchmark's anchor; without one, there would be no drift statistic to compute.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faust
import numpy as np

import streams.service.app
import streams.service.stage
from benchmarks.ingest import fold
from benchmarks.ingest.meter import Meter
from schemas.calibration import Calibration
from schemas.settings import KafkaSettings, Settings, StateSettings, WatchdogSettings
from streams.decisions.planner import Plan, Planner, States
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from streams.profile.state import UserState


class MeteredPlanner(Planner):
    """The planner, with a count of folded events."""

    def __init__(self, meter: Meter, anchor: bytes, *args: Any) -> None:
        super().__init__(*args)
        self.meter = meter
        self.anchor = anchor

    def events(self, states: States, events: Sequence[Event], now: float, ticks: float | None = None) -> Plan:
        """Fold the batch; users without a state get one with the anchor."""
        for event in events:
            if event.user_id not in states:
                states[event.user_id] = UserState(anchor=self.anchor)
        plan = super().events(states, events, now, ticks)
        for user in self.meter.sample & plan.changed:
            self.meter.states[user] = states[user]
        self.meter.events += len(events)
        return plan


def plain(state: UserState) -> dict[str, Any]:
    """Return a state in the common form for comparison."""
    return {
        "count": state.count, "duplicates": state.duplicates, "too_late": state.too_late, "items": list(state.items),
        "times": list(state.times), "interest": (state.short + state.long).hex(),
        "drift": [state.cusum, state.drift_n, state.drift_mean, state.drift_m2]}


def main() -> None:
    meter = Meter.here(plain)
    folder, partitions = Path(os.environ["BENCH_FOLDER"]), int(os.environ["BENCH_PARTITIONS"])
    table = np.load(os.environ["BENCH_VECTORS"])
    vectors = ItemVectors([f"i{n}" for n in range(len(table) - 1)], table[:-1])
    settings = Settings(
        home=folder / "state", kafka=KafkaSettings(bootstrap=os.environ["BENCH_BOOTSTRAP"], partitions=partitions),
        state=StateSettings(history=fold.HISTORY, event_ids=fold.EVENT_IDS, short_half_life=fold.SHORT_HALF_LIFE,
                            long_half_life=fold.LONG_HALF_LIFE),
        watchdog=WatchdogSettings())
    calibration = Calibration(
        min_history=5, ttl_s=1e9, drift_mean=fold.DRIFT_MEAN, drift_sd=fold.DRIFT_SD, drift_prior=fold.DRIFT_PRIOR,
        drift_slack=fold.DRIFT_SLACK, drift_threshold=8.0, drift_false_alarm_every=1e4, margin_bound=1.0, epsilon=1.0)
    planner = MeteredPlanner(meter, table[-1].tobytes(), vectors, calibration, settings)
    decode = streams.service.stage.decode_events

    def metered(*args: Any) -> Any:
        if meter.first is None:
            meter.start()
        decoded = decode(*args)
        meter.invalid += len(decoded[2])
        return decoded

    streams.service.stage.decode_events = metered
    streams.service.app.GROUP = os.environ["BENCH_GROUP"]  # part of the changelog's name, so every run starts empty
    app = streams.service.app.build(settings, planner)
    (settings.home / "run").mkdir(parents=True, exist_ok=True)
    faust.Worker(app, loglevel="WARN", redirect_stdouts=False, quiet=True).execute_from_commandline()


if __name__ == "__main__":
    main()
