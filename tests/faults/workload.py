"""Stamped events for the oracle: made, sent with an ordinary client, and noted in the book when acknowledged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import orjson
from confluent_kafka import Producer

from tests.faults.oracle import EVENTS, Book, event_id

BASE = 1_700_000_000
STEP_S = 60
DISORDER = 20  # events that swap places: fewer than a history holds, so that none is too old for it
BAD: tuple[bytes | None, ...] = (
    b"not json", b"\xff\xfe\x00", b"{}", b"", None, b'{"user_id":7,"item_id":"i","event_time":1}',
    b'{"user_id":"u","item_id":"i","event_time":NaN}', b'{"user_id":"' + b"x" * 1000 + b'"}')


class Workload:
    """Sends stamped events and keeps the book.

    Args:
        items: the catalogue.
        seed: of everything that is drawn.
    """

    def __init__(self, bootstrap: str, items: Sequence[str], book: Book, seed: int = 0) -> None:
        self.book = book
        self._items = items
        self._rng = random.Random(seed)
        self._next: dict[str, int] = {}
        self.refused: list[str] = []
        self.duplicates = self.disordered = self.strays = 0
        # A minute for the broker to come back; the partitioner of Java, which is also Freshet's.
        shared: dict[str, Any] = {"bootstrap.servers": bootstrap, "log_level": 0, "acks": "all", "linger.ms": 5,
                                  "enable.idempotence": True, "message.timeout.ms": 120_000,
                                  "queue.buffering.max.messages": 2_000_000, "reconnect.backoff.max.ms": 1000}
        self._producer = Producer(shared | {"partitioner": "murmur2_random"})

    def events(self, users: Sequence[str], each: int, *, disorder: bool = False) -> list[tuple[str, int, bytes]]:
        """Return the next `each` events of all users, users mixed; with `disorder`, event times go back and forth."""
        out: list[tuple[str, int, bytes]] = []
        for user in users:
            first = self._next.get(user, 0)
            self._next[user] = first + each
            numbers = list(range(first, first + each))
            if disorder:
                for start in range(0, each, DISORDER):
                    part = numbers[start:start + DISORDER]
                    self._rng.shuffle(part)
                    numbers[start:start + DISORDER] = part
            for seq in numbers:
                taste = (hash_of(user) + seq // 9) % 3  # users change their taste every nine events
                item = self._items[(taste * 10 + self._rng.randrange(10)) % len(self._items)]
                out.append((user, seq, orjson.dumps({
                    "user_id": user, "item_id": item, "event_time": BASE + STEP_S * seq,
                    "event_id": event_id(user, seq)})))
        if len(users) > 1:  # interleaved by turn, each user's in its order
            out = [out[each * u + k] for k in range(each) for u in range(len(users))]
        self.disordered += disorder
        return out

    def send(self, events: Sequence[tuple[str, int, bytes]], *, keyed: bool = True, twice: bool = False) -> None:
        """Hand events to the client. Not keyed, they land anywhere; `twice`, each is followed by a copy of a recent."""
        for at, (user, seq, value) in enumerate(events):
            self._produce(value, user, seq, keyed)
            if twice and at % 3 == 2:
                self._produce(*_again(events[at - 2]), keyed)
                self.duplicates += 1
        self.strays += 0 if keyed else len(events)

    def send_bad(self, number: int) -> None:
        """Send records that are no events."""
        for n in range(number):
            value = BAD[n % len(BAD)]  # with a key and no value it would be a tombstone
            self._producer.produce(EVENTS, value, key=None if value is None else b"bad", on_delivery=self._bad_acked)
        self._producer.poll(0)

    def flush(self, seconds: float = 130) -> None:
        """Wait until everything is acknowledged or refused."""
        self._producer.flush(seconds)

    def _produce(self, value: bytes, user: str, seq: int, keyed: bool) -> None:
        def acked(error: Any, _: Any) -> None:
            if error is None:
                self.book.acked[user].add(seq)
            else:
                self.refused.append(error.str())

        self._producer.produce(EVENTS, value, key=user.encode() if keyed else None, on_delivery=acked)
        self._producer.poll(0)

    def _bad_acked(self, error: Any, message: Any) -> None:
        if error is None:
            self.book.bad.add((EVENTS, message.partition(), message.offset()))


def _again(event: tuple[str, int, bytes]) -> tuple[bytes, str, int]:
    return event[2], event[0], event[1]


def hash_of(user: str) -> int:
    """Return a number of the user that is the same in every process."""
    return sum(user.encode())
