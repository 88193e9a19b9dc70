"""From records to rows of the tables and to recent figures: what the views make of a batch. No I/O but the tables'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
from pydantic import ValidationError

from schemas.catalogue.item import CatalogueItem
from schemas.codec import decode
from schemas.errors import PoisonError
from schemas.messages import DeadLetter
from schemas.topics import (
    CATALOGUE,
    CHANGELOG,
    DEAD_LETTERS,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RECOMMENDATIONS,
)
from workers.measurement.prequential import ndcg
from workers.views.reading import tables
from workers.views.reading.recent import Recent
from workers.views.reading.records import (
    ASKED,
    HEAD,
    JUDGED,
    LIST,
    MADE,
    Head,
    KeptList,
    KeptMargin,
    KeptRefresh,
    step_of,
)
from workers.views.reading.tables import KeptEntry, Tables

READ = (CHANGELOG, RECOMMENDATIONS.name, KNOWLEDGE_REQUESTS.name, KNOWLEDGE_UPDATES.name, JUDGEMENTS.name,
        CATALOGUE.name, DEAD_LETTERS.name)
# Topics that are not compacted grow with traffic: of these the newest records per partition are enough.
NEWEST = {JUDGEMENTS.name: 100_000, DEAD_LETTERS.name: 10_000}
LETTERS, LETTER_BYTES = 10_000, 64_000_000  # held, in the tables; the heads of their values in memory
HEAD_OF_VALUE = 2668  # base64 of 2,001 bytes
_TAKEN = 5  # newest events of a state that count as taken: more than one batch brings of one user, with few exceptions


@dataclass(frozen=True, slots=True)
class LiveRecord:
    """A record of a topic; `at` is the broker's time, seconds; value None = a tombstone."""

    topic: str
    offset: int
    at: float
    key: bytes | None
    value: bytes | None


class ViewsFold:
    """Folds batches into tables and figures. One thread; `letters` and `unreadable` may be read from others.

    A record that is not what its topic says is counted and left out: its own readers bury it, this one only shows.
    A record without a value erases what its topic said of the user before; an erasure sends one to each of the topics.
    """

    def __init__(self, held: Tables, recent: Recent) -> None:
        self._tables = held
        self._recent = recent
        self.letters: dict[int, DeadLetter] = {}
        """Offset → letter with the head of its value, oldest first."""
        self._letter_sizes: dict[int, int] = {}
        self._letter_bytes = 0
        self.letters_seen = 0
        self.unreadable: Counter[str] = Counter()
        self.users = 0
        self.catalogue_changes = 0
        """Goes up with each record of the catalogue."""
        self._do: dict[str, Callable[[Sequence[LiveRecord]], None]] = {
            CHANGELOG: self._states, RECOMMENDATIONS.name: self._lists, KNOWLEDGE_REQUESTS.name: self._asked,
            KNOWLEDGE_UPDATES.name: self._made, JUDGEMENTS.name: self._judged, CATALOGUE.name: self._items,
            DEAD_LETTERS.name: self._buried}

    def fold(self, records: Iterable[LiveRecord]) -> None:
        """Fold a batch; within a topic and a key, in the order given."""
        groups: dict[str, list[LiveRecord]] = {}
        for record in records:
            groups.setdefault(record.topic, []).append(record)
        for topic, group in groups.items():
            self._do[topic](group)

    def _states(self, records: Sequence[LiveRecord]) -> None:
        new: dict[bytes, list[tuple[LiveRecord, Head]]] = {}

        def add(key: bytes, record: LiveRecord) -> None:
            head = HEAD.decode(record.value or b"")
            new.setdefault(key, []).append((record, head))
            fresh = sorted(zip(head.counts, head.items, head.times, strict=False))[-_TAKEN:]
            self._recent.changed(_text(key), record.at)
            self._recent.took(_text(key), [item for _, item, _ in fresh], [at for *_, at in fresh])

        erased = self._each(records, new, add)
        known = self._tables.read_all(tables.STATE, {*new, *erased})
        steps = self._tables.read_all(tables.STEPS, new.keys() - erased.keys())
        rows: list[tuple[bytes, bytes, bytes | None]] = []
        for key in erased:
            rows += [(tables.STATE, key, None), (tables.STEPS, key, None)]
            self._recent.forget(_text(key))
        for key, states in new.items():
            last = states[-1][0]
            rows.append((tables.STATE, key, tables.pack_state(last.at, last.value or b"")))
            rows.append((tables.STEPS, key, tables.with_steps(steps.get(key), [step_of(head) for _, head in states])))
        self._predict(new, known)
        self.users += len(new.keys() - known.keys()) - len((erased.keys() & known.keys()) - new.keys())
        self._tables.write(rows)

    def _predict(self, new: Mapping[bytes, Sequence[tuple[LiveRecord, Head]]], known: Mapping[bytes, bytes]) -> None:
        """Compare events that are new in a state with the last list before them.

        A list may come before or after the state of the event that caused it, so what counts is how many events it
        includes. Of a user whose state is read for the first time nothing is compared: their events are old.
        """
        fresh: dict[bytes, list[tuple[int, str]]] = {}
        for key in new.keys() & known.keys():
            before = HEAD.decode(tables.unpack_state(known[key])[1]).count
            head = new[key][-1][1]
            if events := [(count, item) for count, item in zip(head.counts, head.items, strict=False)
                          if count > before]:
                fresh[key] = sorted(events)
        shown = self._tables.read_all(tables.SHOWN, fresh)
        for key, events in fresh.items():
            lists = tables.lists_in(shown.get(key))
            for count, item in events:
                last = next((one for one in reversed(lists) if one.since_count < count), None)
                if last is not None:
                    self._recent.predicted(_text(key), ndcg(last.shows, item), ndcg(last.reference, item))

    def _lists(self, records: Sequence[LiveRecord]) -> None:
        new: dict[bytes, list[KeptList]] = {}

        def add(key: bytes, record: LiveRecord) -> None:
            one = LIST.decode(record.value or b"")
            one.read_at = record.at
            new.setdefault(key, []).append(one)
            self._recent.shown(record.at, one)

        erased = self._each(records, new, add)
        self._merge(tables.SHOWN, new, erased, tables.with_lists)

    def _asked(self, records: Sequence[LiveRecord]) -> None:
        new: dict[bytes, list[tuple[int, KeptRefresh]]] = {}

        def add(key: bytes, record: LiveRecord) -> None:
            asked = ASKED.decode(record.value or b"")
            new.setdefault(key, []).append((asked.version, KeptRefresh(asked=asked)))
            if asked.reason == "contradiction":
                self._recent.contradicted(record.at)

        erased = self._each(records, new, add)
        self._merge(tables.MADE, new, erased, tables.with_refreshes, tables.refreshes_after)

    def _made(self, records: Sequence[LiveRecord]) -> None:
        new: dict[bytes, list[tuple[int, KeptRefresh]]] = {}

        def add(key: bytes, record: LiveRecord) -> None:
            made = MADE.decode(record.value or b"")
            new.setdefault(key, []).append((made.version, KeptRefresh(made=made)))
            self._recent.refreshed(record.at, made)

        erased = self._each(records, new, add)
        self._merge(tables.MADE, new, erased, tables.with_refreshes, tables.refreshes_after)

    def _judged(self, records: Sequence[LiveRecord]) -> None:
        new: dict[bytes, list[tuple[float, KeptMargin]]] = {}

        def add(key: bytes, record: LiveRecord) -> None:
            judged = JUDGED.decode(record.value or b"")
            new.setdefault(key, []).extend((judged.judged_at, margin) for margin in judged.margins)
            self._recent.judged(margin.value for margin in judged.margins)

        erased = self._each(records, new, add)
        self._merge(tables.JUDGED, new, erased, tables.with_margins)

    def _each(self, records: Sequence[LiveRecord], new: dict[bytes, list[Any]],
              add: Callable[[bytes, LiveRecord], None]) -> dict[bytes, float]:
        """Add every record; return when keys were erased, of which `new` has only what came after."""
        erased: dict[bytes, float] = {}
        for record in records:
            key = record.key
            if key is None:
                self.unreadable[record.topic] += 1
            elif record.value is None:
                erased[key] = record.at
                new.pop(key, None)
            else:
                try:
                    add(key, record)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    self.unreadable[record.topic] += 1
        return erased

    def _merge(
        self, kind: bytes, new: dict[bytes, Any], erased: Mapping[bytes, float],
        merged: Callable[[bytes | None, Any], bytes],
        after: Callable[[bytes | None, float], bytes | None] = lambda row, at: None,
    ) -> None:
        """Write the rows of a kind.

        Args:
            after: returns what an erasure leaves of a row. Rows of two topics need one: at a start these are read in
                any order, so what belongs to a user who came back may be there before the erasure is read.
        """
        held: dict[bytes, bytes | None] = dict(self._tables.read_all(kind, {*new, *erased}))
        for key, at in erased.items():
            held[key] = after(held.get(key), at)
        rows = [(kind, key, merged(held.get(key), new[key]) if key in new else held[key]) for key in {**erased, **new}]
        self._tables.write(rows)

    def _items(self, records: Sequence[LiveRecord]) -> None:
        rows: list[tuple[bytes, bytes, bytes | None]] = []
        for record in records:
            key = record.key or b""
            if record.value is None:  # its title stays as the model version has it: histories still name it
                rows.append((tables.ENTRY, key, None))
                continue
            try:
                item = decode(CatalogueItem, record.value)
                if item.item_id.encode() != key:
                    raise PoisonError("the key is not the item_id")
                row = tables.entry_row(entry_of(item))
            except (PoisonError, UnicodeEncodeError, TypeError, OverflowError):
                self.unreadable[record.topic] += 1
                continue
            rows.append((tables.ENTRY, key, row))
        self._tables.write(rows)
        self.catalogue_changes += len(rows)

    def _buried(self, records: Sequence[LiveRecord]) -> None:
        rows: list[tuple[bytes, bytes, bytes | None]] = []
        for record in records:
            self.letters_seen += 1
            self._recent.buried(record.at)
            try:
                letter = DeadLetter.model_validate(orjson.loads(record.value or b""))
            except (orjson.JSONDecodeError, ValidationError):
                self.unreadable[record.topic] += 1
                continue
            data = record.value or b""
            rows.append((tables.LETTER, tables.pack_number(record.offset), data))
            self.letters[record.offset] = letter.model_copy(update={"value": letter.value[:HEAD_OF_VALUE]})
            self._letter_sizes[record.offset] = len(data)
            self._letter_bytes += len(data)
        self._tables.write(rows)
        gone = []
        while len(self.letters) > LETTERS or self._letter_bytes > LETTER_BYTES:
            offset = next(iter(self.letters))
            del self.letters[offset]
            self._letter_bytes -= self._letter_sizes.pop(offset)
            gone.append((tables.LETTER, tables.pack_number(offset), None))
        self._tables.write(gone)


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")


def entry_of(item: CatalogueItem) -> KeptEntry:
    """Return what is kept of an item: its attributes by name, whatever form the shop gives them."""
    given = item.attributes
    attributes: dict[str, Any] = {str(name): value for name, value in given.items()} if isinstance(given, dict) else \
        {"attributes": given} if given else {}
    more = {"labels": list(item.labels), "price": item.price}
    return KeptEntry(item.title, item.text, attributes | {name: value for name, value in more.items() if value},
                     item.available)
