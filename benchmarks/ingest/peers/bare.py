"""The upper bound: a confluent-kafka consumer, the fold, and a dict, without a state store or changelog."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

import orjson
from confluent_kafka import Consumer

from benchmarks.ingest.fold import State, apply, catalogue, valid
from benchmarks.ingest.meter import Meter


def main() -> None:
    meter = Meter.here()
    world = catalogue(Path(os.environ["BENCH_VECTORS"]))
    consumer = Consumer({
        "bootstrap.servers": os.environ["BENCH_BOOTSTRAP"], "group.id": os.environ["BENCH_GROUP"],
        "auto.offset.reset": "earliest", "enable.auto.commit": False, "session.timeout.ms": 10_000})
    consumer.subscribe([os.environ["BENCH_TOPIC"]])
    running = True

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    commit_s = float(os.environ["BENCH_COMMIT_S"])
    states: dict[str, State] = {}
    committed_at, dirty = time.monotonic(), False
    while running:
        for message in consumer.consume(1_000, 0.1):
            if message.error():
                raise RuntimeError(str(message.error()))
            if meter.first is None:
                meter.start()
            event = orjson.loads(message.value())
            if not valid(event):
                meter.invalid += 1
                continue
            user = event["user_id"]
            state = states.get(user)
            if state is None:
                state = states[user] = State()
            apply(state, event["item_id"], event["event_time"], event["event_id"], world)
            meter.note(user, state)
            dirty = True
        if dirty and time.monotonic() - committed_at >= commit_s:
            consumer.commit(asynchronous=False)
            committed_at, dirty = time.monotonic(), False
    consumer.close()


if __name__ == "__main__":
    main()
