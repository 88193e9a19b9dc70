"""Measures memory and consumer lag about once a second, in a thread, so that a slow answer never blocks the demo."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import psutil
from confluent_kafka import KafkaException

from schemas.settings import KafkaSettings
from schemas.topics import (
    BEHAVIOUR_EVENTS,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RANKING_REQUESTS,
    USER_SEEN,
)
from workers.kafka.lag import KNOWLEDGE_GROUP, RANKING_GROUP, STREAMS_GROUP, GroupLag

GROUPS = {
    STREAMS_GROUP: (BEHAVIOUR_EVENTS.name, JUDGEMENTS.name, KNOWLEDGE_UPDATES.name, USER_SEEN.name),
    RANKING_GROUP: (RANKING_REQUESTS.name,),
    KNOWLEDGE_GROUP: (KNOWLEDGE_REQUESTS.name,),
}
_EVERY_S = 1.0


def tree_memory() -> int:
    """Return the memory of this process and its descendants, in bytes.

    On Linux this is the proportional set size: a page shared by n processes (mapped caches, libraries) counts 1/n in
    each. A sum of resident sizes would count the caches once per process. On other systems it is the unique set size.
    """
    kind = "pss" if sys.platform.startswith("linux") else "uss"
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += int(getattr(process.memory_full_info(), kind))
    return total


class Sampler:
    """The sampling thread.

    Attributes:
        peak: highest memory so far, bytes.
        memory: newest memory, bytes.
        lag: newest lag, group → topic → records behind.
    """

    def __init__(self) -> None:
        self.peak = 0
        self.memory = 0
        self.lag: dict[str, dict[str, int]] = {}
        self._kafka: KafkaSettings | None = None
        self._partitions: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Start measuring memory."""
        self._thread.start()

    def watch(self, settings: KafkaSettings, partitions: dict[str, int]) -> None:
        """Start measuring the lag as well.

        Args:
            partitions: number of partitions per topic.
        """
        self._partitions = partitions
        self._kafka = settings

    def stop(self) -> None:
        """Stop the thread. Call it before the broker stops."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def describe(self) -> str:
        """Return a sentence that names the groups and topics with lag."""
        parts = [f"{group} is {behind:,} behind on {topic}"
                 for group, topics in self.lag.items() for topic, behind in topics.items() if behind]
        return "; ".join(parts) or "no group has uncommitted records"

    def _run(self) -> None:
        readers: dict[str, GroupLag] = {}
        while not self._stopping.wait(_EVERY_S):
            self.memory = tree_memory()
            self.peak = max(self.peak, self.memory)
            if self._kafka is None:
                continue
            for group, topics in GROUPS.items():
                started = time.monotonic()
                reader = readers.setdefault(group, GroupLag(self._kafka, group))
                wanted = [(topic, number) for topic in topics for number in range(self._partitions.get(topic, 0))]
                with contextlib.suppress(KafkaException):
                    offsets = reader.offsets(wanted, timeout_s=2.0)
                    behind = dict.fromkeys(topics, 0)
                    for (topic, _), (committed, end) in offsets.items():
                        behind[topic] += max(0, end - committed)
                    self.lag[group] = behind
                if time.monotonic() - started > 1.5:
                    break  # the broker is busy: measure the other groups next time
        for reader in readers.values():
            reader.close()
