"""Open-loop load: events leave at times fixed beforehand, and waiting is counted from those times.

A closed loop, which sends when an answer has arrived, slows down with the system it measures and hides its worst
moments (coordinated omission). Here a late start is part of the latency.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.codec import decode
from schemas.events import BehaviourEvent
from schemas.messages import KnowledgeRequest, Recommendation
from schemas.settings import KafkaSettings
from schemas.topics import KNOWLEDGE_REQUESTS, RECOMMENDATIONS
from workers.data.produce import EventProducer
from workers.demo.inflight import InFlight
from workers.kafka.reader import TopicReader

WATCHED = (RECOMMENDATIONS.name, KNOWLEDGE_REQUESTS.name)


@dataclass
class Measured:
    """What was seen during one load, seconds.

    Args:
        waits: from the time an event was due until its recommendation was read.
        stages: the same by part: the event's way to streams and its state, the request's wait and ranking, the
            recommendation's way; of recommendations for events.
        refreshed: from the event that crossed the drift threshold until a list that used the knowledge was read.
        unanswered: events without an answer at the end.
    """

    rate: float
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refreshed: list[float] = field(default_factory=list)
    refreshes: int = 0
    unanswered: int = 0

    def quantiles(self, values: Sequence[float]) -> list[float]:
        """Return p50, p95 and p99 in milliseconds; [] without values."""
        return [round(1e3 * float(q), 1) for q in np.percentile(values, [50, 95, 99])] if len(values) else []


class Users:
    """Who acts next and on what: users drawn at random, each with their own later events, then popular items."""

    def __init__(
        self, futures: dict[str, list[str]], counts: dict[str, int], popular: Sequence[str], seed: int,
    ) -> None:
        self._futures = {user: list(reversed(items)) for user, items in futures.items()}
        self._names, self._popular = sorted(futures), list(popular)
        self._rng = np.random.default_rng(seed)
        self._number = 0
        self.inflight = InFlight(counts)

    def next(self) -> BehaviourEvent:
        """Return the next event, at the present time."""
        user = self._names[int(self._rng.integers(len(self._names)))]
        left = self._futures[user]
        item = left.pop() if left else self._popular[int(self._rng.integers(len(self._popular)))]
        self._number += 1
        return BehaviourEvent(user_id=user, item_id=item, event_time=time.time(), event_type="view",
                              event_id=f"load-{self._number}")


class OpenLoop:
    """Sends events to a running stack and reads the answers.

    Args:
        check: called about once a second; raises if the stack has failed.
    """

    def __init__(self, kafka: KafkaSettings, users: Users, check: Callable[[], None]) -> None:
        self._kafka, self._users, self._check = kafka, users, check
        self._producer = EventProducer(kafka)
        self._reader = TopicReader(kafka, WATCHED)
        self._waiting: dict[tuple[str, int], float] = {}  # user, version → when the event that asked came
        self._checked = 0.0

    def close(self) -> None:
        """Close the clients."""
        self._producer.flush()
        self._reader.close()

    def open_loop(self, rate: float, seconds: float, patience_s: float = 30.0) -> Measured:
        """Send `rate` events per second for `seconds`, then wait for the answers, `patience_s` at most."""
        out = Measured(rate)
        began = time.time() + 0.1
        due = began + np.arange(int(rate * seconds)) / rate
        at = 0
        while at < len(due):
            now = time.time()
            while at < len(due) and due[at] <= now:
                self._send(float(due[at]))
                at += 1
            self._read(out, min(0.005, max(0.0, due[at] - time.time())) if at < len(due) else 0.0)
        self._drain(out, patience_s)
        out.seconds = time.time() - began
        return out

    def closed_loop(self, window: int, seconds: float) -> Measured:
        """Keep `window` events unanswered for `seconds`: the highest rate that is held."""
        out = Measured(0.0)
        began = time.time()
        while time.time() - began < seconds:
            while self._users.inflight.total < window:
                self._send(time.time())
            self._read(out, 0.005)
        out.rate = len(out.waits) / (time.time() - began)
        self._drain(out, 60.0)
        out.seconds = time.time() - began
        return out

    def _send(self, due: float) -> None:
        event = self._users.next()
        self._users.inflight.sent(event.user_id, due)
        self._producer.send(event)

    def _drain(self, out: Measured, patience_s: float) -> None:
        until = time.time() + patience_s
        while self._users.inflight.total and time.time() < until:
            self._read(out, 0.01)
        out.unanswered = self._users.inflight.total

    def _read(self, out: Measured, seconds: float) -> None:
        for message in self._reader.poll(seconds):
            now = time.time()
            if self._kafka.plain(message.topic()) == RECOMMENDATIONS.name:
                self._recommended(decode(Recommendation, message.value()), now, out)
            else:
                request = decode(KnowledgeRequest, message.value())
                out.refreshes += 1
                if request.reason == "drift":
                    self._waiting[request.user_id, request.version] = request.caused_at
        self._producer.poll()
        if time.monotonic() - self._checked > 1.0:
            self._checked = time.monotonic()
            self._check()

    def _recommended(self, answer: Recommendation, now: float, out: Measured) -> None:
        waits = [now - due for due in self._users.inflight.answered(answer.user_id, answer.count)]
        out.waits += waits
        if waits and answer.reason == "event":
            out.stages["event → request"].append(answer.requested_at - answer.caused_at)
            out.stages["request → ranked"].append(answer.ranked_at - answer.requested_at)
            out.stages["ranked → read"].append(now - answer.ranked_at)
        if asked := self._waiting.pop((answer.user_id, answer.knowledge_version), None):
            out.refreshed.append(now - asked)
