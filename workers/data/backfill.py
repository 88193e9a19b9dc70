"""Folds past events into user states, without recommendations or refreshes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from schemas.events import BehaviourEvent
from schemas.settings import KafkaSettings
from workers.data.produce import EventProducer
from workers.kafka.lag import STREAMS_GROUP, GroupLag


def fold_past(
    kafka: KafkaSettings, events: Iterable[BehaviourEvent], left: Callable[[int, bool], None], stall_s: float = 60.0,
) -> None:
    """Send past events, and return when streams has committed all of them.

    Args:
        left: called about ten times a second with the number of events not yet folded, and whether it has fallen.
        stall_s: seconds without a delivery after which sending fails.
    """
    producer = EventProducer(kafka, backfill=True, stall_s=stall_s)
    ends: dict[tuple[str, int], int] = {}

    def _placed(_: Any, message: Any) -> None:
        where = (kafka.plain(message.topic()), message.partition())
        ends[where] = max(ends.get(where, 0), message.offset() + 1)

    for event in events:
        producer.send(event, _placed)
    producer.flush()
    group = GroupLag(kafka, STREAMS_GROUP)
    try:
        done = dict.fromkeys(ends, 0)
        while missing := sum(ends[where] - at for where, at in done.items()):
            moved = False
            for where, (committed, _) in group.offsets(ends).items():
                if committed > done[where]:
                    done[where], moved = min(committed, ends[where]), True
            left(missing, moved)
            time.sleep(0.1)
    finally:
        group.close()
