"""The job in idiomatic Faust: a Record per event, an agent for single events, a Table on RocksDB with changelog.

Table values are bytes (the "raw" codec); JSON and pickle, Faust's defaults, are even slower.
"""

from __future__ import annotations

import os
from pathlib import Path

import faust

from benchmarks.ingest import fold
from benchmarks.ingest.meter import Meter

meter = Meter.here()
world = fold.catalogue(Path(os.environ["BENCH_VECTORS"]))
app = faust.App(
    os.environ["BENCH_GROUP"], broker=f"kafka://{os.environ['BENCH_BOOTSTRAP']}", store="rocksdb://",
    datadir=str(Path(os.environ["BENCH_FOLDER"]) / "state"), web_enabled=False,
    topic_partitions=int(os.environ["BENCH_PARTITIONS"]), consumer_auto_offset_reset="earliest",
    broker_session_timeout=10.0, broker_heartbeat_interval=2.0,
    broker_commit_interval=float(os.environ["BENCH_COMMIT_S"]), producer_linger=0.02)


class BehaviourEvent(faust.Record, serializer="json", validation=False):
    """The Kafka record. Faust rejects missing fields; `valid` checks the types."""

    user_id: str
    item_id: str
    event_time: float
    event_id: str
    event_type: str = "interaction"


topic = app.topic(os.environ["BENCH_TOPIC"], key_type=str, key_serializer="raw", value_type=BehaviourEvent)
profiles = app.Table("profiles", key_type=str, value_type=bytes)


def valid(event: BehaviourEvent) -> bool:
    return (isinstance(event.user_id, str) and isinstance(event.item_id, str) and isinstance(event.event_id, str)
            and isinstance(event.event_time, int | float))


@app.agent(topic)
async def profile(events: faust.Stream[BehaviourEvent]) -> None:
    async for event in events:
        if meter.first is None:
            meter.start()
        if not valid(event):
            meter.invalid += 1
            continue
        stored = profiles.get(event.user_id)
        user = fold.State() if stored is None else fold.unpack(stored)
        fold.apply(user, event.item_id, event.event_time, event.event_id, world)
        profiles[event.user_id] = fold.pack(user)
        meter.note(event.user_id, user)


if __name__ == "__main__":
    app.main()
