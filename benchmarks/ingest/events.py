"""The benchmark's data: seeded synthetic events, item vectors, and production to the topic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from confluent_kafka import Producer

START = 1_700_000_000.0
DIM = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes and shares of the synthetic stream.

    Args:
        user_exponent: Zipf exponent of user activity; with 0.7 and 5,000 users the most active one makes 2% of events.
        duplicates: share of records that repeat an earlier record of the same user.
        late: share of events with a time before the user's newest.
    """

    events: int = 400_000
    users: int = 5_000
    items: int = 2_000
    partitions: int = 4
    user_exponent: float = 0.7
    item_exponent: float = 1.0
    duplicates: float = 0.01
    late: float = 0.01
    seed: int = 7


Record = tuple[str, bytes]


def _zipf(n: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def generate(work: Workload) -> list[Record]:
    """Return the records (user id, JSON bytes) in order of production."""
    rng = np.random.default_rng(work.seed)
    users = rng.choice(work.users, work.events, p=_zipf(work.users, work.user_exponent)).tolist()
    items = rng.choice(work.items, work.events, p=_zipf(work.items, work.item_exponent)).tolist()
    steps = np.cumsum(rng.exponential(1.0, work.events)).round(3).tolist()
    luck = rng.random(work.events).tolist()
    back = (rng.exponential(3_600.0, work.events).round(3) + 1.0).tolist()
    kinds = rng.choice(["view", "click", "purchase"], work.events, p=[0.7, 0.25, 0.05]).tolist()
    last: dict[int, bytes] = {}
    out: list[Record] = []
    for n, user in enumerate(users):
        if luck[n] < work.duplicates and user in last:
            value = last[user]
        else:
            late = luck[n] > 1.0 - work.late
            value = orjson.dumps({
                "event_id": f"{n:016x}", "user_id": f"u{user}", "item_id": f"i{items[n]}",
                "event_time": START + steps[n] - (back[n] if late else 0.0), "event_type": kinds[n]})
            last[user] = value
        out.append((f"u{user}", value))
    return out


def write_vectors(work: Workload, path: Path) -> None:
    """Save (items + 1, 64) float32 unit vectors; the last row is the initial anchor of every user."""
    rng = np.random.default_rng(work.seed + 1)
    table = rng.normal(size=(work.items + 1, DIM)) + 0.3  # a common component, so that cosines differ from zero
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    np.save(path, table.astype(np.float32))


def produce(bootstrap: str, topic: str, records: list[Record], headers: list[tuple[str, bytes]]) -> None:
    """Produce all records, keyed by user with Kafka's default partitioner, and wait for acknowledgement."""
    failed: list[str] = []
    producer = Producer({
        "bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 50, "acks": "all",
        # A topic just created may refuse the first requests; their retries must not change the order of events.
        "enable.idempotence": True,
        "queue.buffering.max.messages": 1_000_000, "batch.size": 200_000})

    def report(error: object, _: object) -> None:
        if error is not None:
            failed.append(str(error))

    for n, (user, value) in enumerate(records):
        producer.produce(topic, value, user, headers=headers, on_delivery=report)
        if n % 1_000 == 0:
            producer.poll(0)
    left = producer.flush(120)
    if left or failed:
        raise RuntimeError(f"{left} records were not sent, {len(failed)} failed: {failed[:1]}")
