"""What the counters say while the broker does not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from schemas.liveness import Progress, counters_file
from streams.service.watchdog import FaustWatchdog

HERE = TP("behaviour-events", 0)


class Consumer:
    """A consumer of one partition, of which 7 of 10 records are fetched and one batch is in hand."""

    unsettled = 1

    def __init__(self) -> None:
        self.away = False

    def assignment(self) -> set[TP]:
        return {HERE, TP("changelog", 0)}

    async def end_offsets(self, *partitions: TP) -> dict[TP, int]:
        assert partitions == (HERE,)
        if self.away:
            raise KafkaConnectionError("away")
        return {HERE: 10}

    async def position(self, partition: TP) -> int:
        return 7


def test_a_broker_that_is_away_is_what_the_role_waits_for(tmp_path: Path) -> None:
    progress, consumer = Progress(tmp_path, "streams"), Consumer()
    progress.clear()
    watchdog = FaustWatchdog(60.0, progress)
    app: Any = SimpleNamespace(consumer=consumer, batched_topics=frozenset({HERE.topic}))

    def said() -> tuple[int, str, str]:
        waiting = asyncio.run(watchdog.ask(app))
        moves = progress.moves
        progress.write(waiting, force=True)
        file = orjson.loads(counters_file(tmp_path, "streams").read_bytes())
        assert moves == 0  # no answer is no progress
        return waiting, file["lag"], file["waits_for"]

    assert said() == (4, 4, "")
    consumer.away = True
    assert said() == (1, 1, "broker")
    consumer.away = False
    assert said() == (4, 4, "")


def test_a_dropped_batch_is_in_nobodys_hand(tmp_path: Path) -> None:
    progress, consumer = Progress(tmp_path, "streams"), Consumer()
    progress.clear()
    watchdog = FaustWatchdog(60.0, progress)
    app: Any = SimpleNamespace(consumer=consumer, batched_topics=frozenset({HERE.topic}))
    progress.in_hand(9)
    for unsettled in (1, 0):
        consumer.unsettled = unsettled
        watchdog.write(app, 0)
        progress.write(0, force=True)
        assert orjson.loads(counters_file(tmp_path, "streams").read_bytes())["busy"] is bool(unsettled)
