"""Reads items that come on the topic `catalogue`: encodes their texts, stores and announces them.

It runs in a thread beside the role's work and reads the topic from its beginning with every start and every model
version, which costs a look into the store per item. Of several instances one does so, by a group whose commits say what
was announced and which unusable records are dead letters already.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition
from numpy.typing import NDArray

from models.evidence.item_knowledge import ItemKnowledge
from models.evidence.user_text import ItemTexts
from schemas.artifacts import Artifact, Registry
from schemas.catalogue.update import SIMILAR, Alike, ItemUpdate, about
from schemas.deployments import base_of
from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import KafkaSettings, Settings
from schemas.topics import CATALOGUE, ITEM_UPDATES
from workers.catalogue.reader import Versions, entries_of
from workers.catalogue.view import Entry
from workers.kafka.configuration import consumer
from workers.kafka.lag import CATALOGUE_GROUP
from workers.kafka.outbox import Outbox, Output
from workers.store.item_files import encoder_of, known_items
from workers.store.items import ItemPoint, ItemStore, QdrantItems

log = logging.getLogger(__name__)
_BATCH = 64  # items encoded at a time, a second on one core
_WAIT_S = 0.1
_PAUSE_S = (1.0, 60.0)  # first and longest pause after a failure

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class FittedItems:
    """What reading an item needs of a model version.

    Args:
        known: of its items, in the order of `items`.
        encoder: name of the sentence encoder whose encodings it has; "" = none.
    """

    model_version: str
    items: list[str]
    known: ItemKnowledge
    encoder: str = ""

    @classmethod
    def of(cls, artifact: Artifact) -> FittedItems:
        """Return it of an artifact."""
        known = known_items(artifact)
        encoder = "" if known.encoded is None else encoder_of(artifact)
        return cls(artifact.model_version, artifact.items(), known, encoder)

    @property
    def dim(self) -> int:
        """Width of the encodings; 0 = it has none."""
        return 0 if self.known.encoded is None else self.known.encoded.shape[1]


class LaterReader:
    """Turns entries of the catalogue into points and updates. Needs no broker.

    Args:
        fitted: the version in use.
        encode: returns the encodings (m, d) of texts.
        clock: wall clock, seconds.
    """

    def __init__(self, fitted: FittedItems, encode: Encode, clock: Callable[[], float] = time.time) -> None:
        self.fitted = fitted
        self._encode, self._clock = encode, clock
        self._texts = dict(zip(fitted.items, fitted.known.texts, strict=True))
        self._similar: ItemTexts | None = None
        self.counters = {"later_items_read": 0, "later_items_encoded": 0}

    def new(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the newest entry of each item that has a text which the fit did not read."""
        newest = {entry.item_id: entry for entry in entries}
        return [entry for entry in newest.values()
                if not entry.removed and entry.text and self._texts.get(entry.item_id) != entry.text]

    def read(self, entries: Sequence[Entry], store: ItemStore | None) -> list[ItemUpdate]:
        """Store what was read of entries as `new` returns them; return the updates to announce.

        Args:
            store: None = the version has no encodings.

        Raises:
            StoreUnavailableError: call again with the same entries.
        """
        vectors = self._stored(entries, store) if store is not None else None
        now = self._clock()
        self.counters["later_items_read"] += len(entries)
        return [ItemUpdate(
            item_id=entry.item_id, version=entry.version, about=about(entry.text),
            encoder=self.fitted.encoder if store is not None else "", similar=similar, caused_at=entry.version / 1e6,
            written_at=now) for entry, similar in zip(entries, self._nearest(entries, vectors), strict=True)]

    def _stored(self, entries: Sequence[Entry], store: ItemStore) -> NDArray[np.float32]:
        held = store.read([entry.item_id for entry in entries])
        fits = {item for item, point in held.items() for entry in entries if entry.item_id == item
                and point.text == entry.text and point.encoder == self.fitted.encoder}
        missing = [entry for entry in entries if entry.item_id not in fits]
        found = {item: held[item].vector for item in fits}
        if missing:
            made = self._encode([entry.text for entry in missing])
            self.counters["later_items_encoded"] += len(missing)
            now = self._clock()
            store.upsert([
                ItemPoint(entry.item_id, _version(entry, held.get(entry.item_id)), self.fitted.model_version, vector,
                          entry.text, "", self.fitted.encoder, now)
                for entry, vector in zip(missing, made, strict=True)])
            found |= {entry.item_id: vector for entry, vector in zip(missing, made, strict=True)}
        return np.stack([found[entry.item_id] for entry in entries]).astype(np.float32)

    def _nearest(self, entries: Sequence[Entry], vectors: NDArray[np.float32] | None) -> list[list[Alike]]:
        if not entries or not any(self.fitted.known.texts):
            return [[] for _ in entries]
        if self._similar is None:
            encoded = self.fitted.known.encoded if vectors is not None else None
            self._similar = ItemTexts.of(self.fitted.known.texts, encoded)
        best = self._similar.similarity([entry.text for entry in entries], vectors).topk(
            min(SIMILAR, len(self.fitted.items)), 1)
        items = self.fitted.items
        return [[Alike(item_id=items[row], score=min(1.0, score / 2)) for row, score in zip(rows, scores, strict=True)
                 if score > 0 and len(items[row]) <= 256]
                for rows, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _version(entry: Entry, held: ItemPoint | None) -> int:
    """Return the version to write: another encoder may replace what the first one wrote of the same text."""
    return entry.version if held is None or held.text != entry.text else max(entry.version, held.version + 1)


class LaterItemsThread:
    """The thread.

    Args:
        settings: of broker, store and encoder.
        artifact: the version in use.
        open_store, encoder: None = the settings'.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, open_store: Callable[[int], ItemStore] | None = None,
        encoder: Encode | None = None,
    ) -> None:
        self._settings = settings
        self._open = open_store or (lambda dim: QdrantItems.at(settings, dim))
        self._encoder = encoder
        self._encoders: dict[str, Encode] = {}
        self._version, self._artifact = artifact.model_version, artifact
        self._closing, self._changed = threading.Event(), threading.Event()
        self.counters = {"later_items_read": 0, "later_items_encoded": 0, "catalogue_dead_letters": 0}
        self._thread = threading.Thread(target=self._run, name="later-items", daemon=True)
        self._thread.start()

    def take(self, model_version: str) -> None:
        """Go on with another version; an adapter of the same one changes nothing."""
        if base_of(model_version) != self._version:
            self._version = base_of(model_version)
            self._changed.set()

    def close(self) -> None:
        """Stop after the current batch."""
        self._closing.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        pause, again = _PAUSE_S[0], False
        while not self._closing.is_set():
            try:
                if self._artifact.model_version != self._version:
                    self._artifact = Registry(self._settings.home).open(self._version)
                self._changed.clear()
                self._follow(again)
                pause, again = _PAUSE_S[0], True  # another version: what is similar is announced again
            except Exception as error:  # the role's own work does not depend on it
                log.error("new items are not read: %s", error, exc_info=not isinstance(error, FreshetError))
                self._closing.wait(pause)
                pause = min(2 * pause, _PAUSE_S[1])

    def _follow(self, again: bool) -> None:
        """Follow the topic until the version changes or the role ends.

        Args:
            again: announce what was announced before.
        """
        fitted = FittedItems.of(self._artifact)
        reader = LaterReader(fitted, self._encode)
        reader.counters = self.counters
        store = self._open(fitted.dim) if fitted.dim else None
        outbox = Outbox(self._settings.kafka, "knowledge")
        begin = _Beginning(again)
        source = Consumer(
            consumer(self._settings.kafka, CATALOGUE_GROUP), logger=logging.getLogger(f"{__name__}.kafka"))
        source.subscribe([self._settings.kafka.full(CATALOGUE.name)], on_assign=begin.assigned)
        ready = store is None
        try:
            while not self._closing.is_set() and not self._changed.is_set():
                records = [one for one in source.consume(_BATCH, _WAIT_S) if one.error() is None]
                if not records:
                    continue
                if store is not None and not ready:
                    self._patiently(store.ensure)
                    ready = True
                self._batch(records, begin, reader, store, outbox)
                _commit(source, self._settings.kafka, records)
        finally:
            outbox.close()
            source.close()
            if store is not None:
                store.close()

    def _batch(
        self, records: Sequence[Message], begin: _Beginning, reader: LaterReader, store: ItemStore | None,
        outbox: Outbox,
    ) -> None:
        entries, bad = entries_of(records, begin.versions)
        for record, reason in bad:
            if begin.is_new(record):
                log.warning("dead letter %s[%s]@%s: %s", record.topic(), record.partition(), record.offset(), reason)
                outbox.bury(record, reason)
                self.counters["catalogue_dead_letters"] += 1
        outbox.flush()
        fresh = {str((record.key() or b"").decode(errors="replace")) for record in records if begin.announces(record)}
        encoded = self.counters["later_items_encoded"]
        updates = self._patiently(lambda: reader.read(reader.new(entries), store))
        if self.counters["later_items_encoded"] == encoded:  # all was in the store: what was announced stays so
            updates = [update for update in updates if update.item_id in fresh]
        gone = {entry.item_id: entry.removed for entry in entries if entry.item_id in fresh}
        outbox.send([*(Output(ITEM_UPDATES, update.item_id, update) for update in updates),
                     *(Output(ITEM_UPDATES, item, None) for item, removed in gone.items() if removed)])

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Return what a call of the store returns; wait for a store that is away."""
        pause = _PAUSE_S[0]
        while True:
            try:
                return call()
            except StoreUnavailableError as error:
                log.warning("%s; new items wait", error)
                if self._closing.wait(max(pause, error.retry_after_s)):
                    raise
                pause = min(2 * pause, _PAUSE_S[1])

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._encoder is not None:
            return self._encoder(texts)
        name = encoder_of(self._artifact)
        if name not in self._encoders:
            from models.language.sentences import SentenceEncoder

            log.info("loading the sentence encoder %s for new items", name)
            self._encoders = {name: SentenceEncoder.load(name, self._settings.llm.device).encode}
        return self._encoders[name](texts)


class _Beginning:
    """Starts every assignment at the topic's beginning, and knows what was committed before.

    Args:
        again: announce everything again.
    """

    def __init__(self, again: bool) -> None:
        self._again = again
        self._committed: dict[int, int] = {}
        self.versions = Versions()

    def assigned(self, source: Consumer, parts: list[TopicPartition]) -> None:
        """Look up commits and go to the beginning."""
        self._committed = {part.partition: part.offset for part in source.committed(parts, timeout=10.0)}
        self.versions = Versions()
        for part in parts:
            part.offset = OFFSET_BEGINNING
        source.assign(parts)

    def is_new(self, record: Message) -> bool:
        """Return whether a record was not dealt with before."""
        return (record.offset() or 0) >= self._committed.get(record.partition() or 0, -1)

    def announces(self, record: Message) -> bool:
        """Return whether what a record says is to be announced, if it is in the store already."""
        return self._again or self.is_new(record)


def _commit(source: Consumer, settings: KafkaSettings, records: Sequence[Message]) -> None:
    newest: dict[int, int] = {}
    for record in records:
        newest[record.partition() or 0] = (record.offset() or 0) + 1
    try:
        # A record that is read again is not committed again: the group's mark never goes back.
        held = {part.partition: part.offset for part in source.committed(
            [TopicPartition(settings.full(CATALOGUE.name), number) for number in newest], timeout=10.0)}
        ahead = [TopicPartition(settings.full(CATALOGUE.name), number, offset) for number, offset in newest.items()
                 if offset > held.get(number, -1)]
        if ahead:
            source.commit(offsets=ahead, asynchronous=False)
    except KafkaException as error:  # another instance has the partition by now: it reads the records again
        log.warning("what was read of the catalogue cannot be committed: %s", error.args[0].str())
