"""The topic `catalogue`, read from its beginning by every process that needs it, like a global table.

The version of an entry is its record's time on the broker in microseconds, a little more where several records have the
same: so it orders an item's records, also those of a topic that was created again, and a fit's items with them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from schemas.catalogue.item import CatalogueItem
from schemas.codec import decode
from schemas.errors import PoisonError
from schemas.settings import KafkaSettings
from schemas.topics import CATALOGUE
from workers.catalogue.view import Entry
from workers.kafka.reader import TopicReader

log = logging.getLogger(__name__)


class Versions:
    """Gives records their versions, in the order of their partitions."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def of(self, partition: int, written_ms: int) -> int:
        """Return the version of a partition's next record."""
        version = self._last[partition] = max(1000 * written_ms, self._last.get(partition, 0) + 1)
        return version


def read_entry(key: bytes | None, value: bytes | None, version: int) -> Entry:
    """Return what a record says.

    Raises:
        PoisonError: it cannot be used.
    """
    if not key:
        raise PoisonError("the record has no key; the topic is compacted by item_id, so the key must be the item's id")
    try:
        name = key.decode()
    except UnicodeDecodeError:
        raise PoisonError("the key is not UTF-8") from None
    if value is None:
        return Entry.gone(name, version)
    item = decode(CatalogueItem, value)
    if item.item_id != name:
        raise PoisonError("the key is not the item_id; the topic is compacted by its key, so they must be equal")
    return Entry.of(item, version)


def entries_of(records: Sequence[Message], versions: Versions) -> tuple[list[Entry], list[tuple[Message, str]]]:
    """Return what records say, and those that cannot be used, each with the reason."""
    out, bad = [], []
    for record in records:
        kind, written_ms = record.timestamp()
        version = versions.of(record.partition() or 0, 0 if kind == TIMESTAMP_NOT_AVAILABLE else written_ms)
        try:
            out.append(read_entry(record.key(), record.value(), version))
        except PoisonError as error:
            bad.append((record, error.reason))
    return out, bad


class CatalogueReader:
    """Follows the topic in no group, without waiting. The knowledge role sends what cannot be used to the dead letters.

    Raises:
        FreshetError: there is no such topic, or no broker answers.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._reader = TopicReader(settings, [CATALOGUE.name], from_beginning=True)
        self._versions = Versions()

    def catch_up(self, within_s: float = 30.0) -> list[Entry]:
        """Return what the topic holds; what is not read in time comes with `poll`."""
        records: list[Message] = []
        deadline = time.monotonic() + within_s
        while not self._reader.ended and time.monotonic() < deadline:
            records += self._reader.poll(0.1)
        return entries_of(records, self._versions)[0]

    def poll(self) -> list[Entry]:
        """Return what has come since the last call."""
        return entries_of(self._reader.poll(0.0), self._versions)[0]

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()
