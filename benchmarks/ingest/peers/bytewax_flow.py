"""The job in Bytewax: Kafka source, decode, key by user, stateful_map. The state has no changelog.

Bytewax commits no offsets to the broker. The flow ends when the source reaches the end of the topic; the meter's count
confirms it. Recovery snapshots are off, as in the first examples of its documentation.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from benchmarks.ingest.fold import State, apply, catalogue, valid
from benchmarks.ingest.meter import Meter


class _Discard(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        pass


class DiscardSink(DynamicSink[Any]):
    """An output that discards everything; Bytewax requires one."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Discard:
        return _Discard()


def flow(meter: Meter) -> Dataflow:
    world = catalogue(Path(os.environ["BENCH_VECTORS"]))

    def decode(message: KafkaSourceMessage[bytes, bytes]) -> dict[str, Any] | None:
        if meter.first is None:
            meter.start()
        event = orjson.loads(message.value)
        if not valid(event):
            meter.invalid += 1
            return None
        return event

    def fold(state: State | None, event: dict[str, Any]) -> tuple[State, int]:
        if state is None:
            state = State()
        apply(state, event["item_id"], event["event_time"], event["event_id"], world)
        meter.note(event["user_id"], state)
        return state, state.count

    out = Dataflow("profile")
    source = kop.input(
        "events", out, brokers=[os.environ["BENCH_BOOTSTRAP"]], topics=[os.environ["BENCH_TOPIC"]], tail=False,
        batch_size=1_000)
    events = op.filter_map("decode", source.oks, decode)
    keyed = op.key_on("by_user", events, lambda event: event["user_id"])
    counts = op.stateful_map("profile", keyed, fold)
    op.output("out", counts, DiscardSink())
    return out


def main() -> None:
    meter = Meter.here()
    run_main(flow(meter))
    meter.wait()


if __name__ == "__main__":
    main()
