"""The job in Quix Streams: a stateful apply on a StreamingDataFrame, RocksDB state, changelog topics on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quixstreams import Application, State

from benchmarks.ingest import fold
from benchmarks.ingest.meter import Meter


def main() -> None:
    meter = Meter.here()
    world = fold.catalogue(Path(os.environ["BENCH_VECTORS"]))
    app = Application(
        broker_address=os.environ["BENCH_BOOTSTRAP"], consumer_group=os.environ["BENCH_GROUP"],
        auto_offset_reset="earliest", commit_interval=float(os.environ["BENCH_COMMIT_S"]),
        # On the embedded broker the first join of a group takes half the session timeout.
        consumer_extra_config={"session.timeout.ms": 10_000}, use_changelog_topics=True,
        state_dir=Path(os.environ["BENCH_FOLDER"]) / "state", loglevel="WARNING")

    def profile(event: dict[str, Any], state: State) -> dict[str, Any]:
        stored = state.get_bytes("profile")
        user = fold.State() if stored is None else fold.unpack(stored)
        fold.apply(user, event["item_id"], event["event_time"], event["event_id"], world)
        state.set_bytes("profile", fold.pack(user))
        meter.note(event["user_id"], user)
        return event

    def checked(event: Any) -> bool:
        if meter.first is None:
            meter.start()
        if fold.valid(event):
            return True
        meter.invalid += 1
        return False

    events = app.topic(os.environ["BENCH_TOPIC"], value_deserializer="json")
    frame = app.dataframe(events)
    frame = frame.filter(checked)
    frame.apply(profile, stateful=True)
    app.run()


if __name__ == "__main__":
    main()
