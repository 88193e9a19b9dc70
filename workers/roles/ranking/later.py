"""Takes items that come after the fit into the ranking model, without a restart and beside the role's work.

The topic `catalogue` says at once what may be recommended. What an item's text is worth comes when the knowledge role
says on `item-updates` that its encoding is in the store: the encoding is read by a thread of its own, so that a store
that is away holds up no list, and a few items are taken at a time, so that many new ones do not, either.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from models.evidence.later import Described
from schemas.catalogue.update import ItemUpdate, about
from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError, StoreUnavailableError
from schemas.settings import Settings
from schemas.topics import ITEM_UPDATES
from workers.catalogue.reader import CatalogueReader
from workers.kafka.reader import TopicReader
from workers.roles.ranking.ranker import Ranker
from workers.store.items import ItemPoint, ItemStore, QdrantItems

log = logging.getLogger(__name__)
AT_ONCE = 6  # items taken between two batches, some 15 ms each
_PAUSE_S = (0.5, 30.0)  # first and longest pause before a point that is not there is asked for again

Open = Callable[[int], ItemStore]


class PointFetcher:
    """A thread that reads points of items until they are there.

    Args:
        open_store: opens the store for a width.
    """

    def __init__(self, open_store: Open) -> None:
        self._open = open_store
        self._asked: SimpleQueue[tuple[str, str, int] | None] = SimpleQueue()
        self._found: deque[tuple[str, str, NDArray[np.float32]]] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="item-points", daemon=True)
        self._thread.start()

    def ask(self, item: str, text: str, dim: int) -> None:
        """Read the encoding of an item's text, of width `dim`."""
        self._asked.put((item, text, dim))

    def found(self) -> list[tuple[str, str, NDArray[np.float32]]]:
        """Return what has been read since the last call: items, texts and encodings."""
        out = []
        while self._found:
            out.append(self._found.popleft())
        return out

    def close(self) -> None:
        """Stop."""
        self._closing.set()
        self._asked.put(None)
        self._thread.join(10.0)

    def _run(self) -> None:
        store: ItemStore | None = None
        waiting: dict[str, tuple[str, int]] = {}
        pause = _PAUSE_S[0]
        while not self._closing.is_set():
            new = self._next(pause if waiting else None)
            waiting |= {item: (text, dim) for item, text, dim in new}
            if new:
                pause = _PAUSE_S[0]
            if not waiting or self._closing.is_set():
                continue
            try:
                store = store or self._open(next(iter(waiting.values()))[1])
                points = store.read(list(waiting)[:256])
            except FreshetError as error:
                if not isinstance(error, StoreUnavailableError):
                    log.error("encodings of new items cannot be read: %s", error)
                points = {}
            except Exception:  # nothing else depends on this thread
                log.exception("encodings of new items cannot be read")
                points = {}
            before = len(waiting)
            for item, point in points.items():
                if item in waiting and fits(point, *waiting[item]):
                    self._found.append((item, waiting.pop(item)[0], point.vector))
            pause = _PAUSE_S[0] if len(waiting) < before else min(2 * pause, _PAUSE_S[1])
        if store is not None:
            store.close()

    def _next(self, wait_s: float | None) -> list[tuple[str, str, int]]:
        """Return what is asked; wait for it, at most `wait_s` seconds."""
        out = []
        try:
            one = self._asked.get(timeout=wait_s)
            while True:
                if one is not None:
                    out.append(one)
                one = self._asked.get_nowait()
        except Empty:
            return out


def fits(point: ItemPoint, text: str, dim: int) -> bool:
    """Return whether a point is of this text."""
    return point.text == text and point.vector.shape == (dim,)


class CatalogueFollower:
    """Keeps a ranker at what the topics say. Called between batches.

    Args:
        ranker: gets what came.
        settings: broker and store.
        open_store: opens the store for a width; None = the settings'.
    """

    def __init__(self, ranker: Ranker, settings: Settings, open_store: Open | None = None) -> None:
        self._ranker = ranker
        self._entries = CatalogueReader(settings.kafka)
        self._updates = TopicReader(settings.kafka, [ITEM_UPDATES.name], from_beginning=True)
        self._points = PointFetcher(
            open_store or (lambda dim: QdrantItems.at(settings, dim)))
        self._arrivals = Arrivals()
        self._taken = 0

    def counters(self) -> dict[str, int]:
        """Return the counters for the role's progress file."""
        catalogue = self._ranker.catalogue
        return {"later_items": len(catalogue) - catalogue.fitted, "later_items_unread": len(self._ranker.unread),
                "later_items_taken": self._taken}

    def catch_up(self) -> None:
        """Take what may be recommended; items that came after the fit follow with `poll`."""
        self._ranker.take(self._entries.catch_up())

    def poll(self) -> None:
        """Take what has come, of new items a few."""
        self._ranker.take(self._entries.poll())
        for record in self._updates.poll(0.0):
            if record.value() is None:  # the item was removed
                continue
            try:
                self._arrivals.said(decode(ItemUpdate, record.value()))
            except PoisonError as error:
                log.error("unusable record on %s: %s", ITEM_UPDATES.name, error.reason)
        for item, text, vector in self._points.found():
            self._arrivals.read(item, text, vector)
        catalogue, model = self._ranker.catalogue, self._ranker.model
        unread = {row: (catalogue.items[row], text) for row, text in self._ranker.unread.items()}
        dim = self._ranker.encoded_dim if unread and model.encodes else 0
        for item, text in self._arrivals.to_read(unread.values(), dim > 0):
            self._points.ask(item, text, dim)
        rows = [row for row, (item, text) in unread.items() if self._arrivals.ready(item, text, dim > 0)][:AT_ONCE]
        if rows:
            self._take(rows, unread, encodes=dim > 0)

    def _take(self, rows: Sequence[int], unread: Mapping[int, tuple[str, str]], *, encodes: bool) -> None:
        """Take items into the model; one that cannot be taken is left as it is, and no list waits for it."""
        named = [unread[row] for row in rows]
        encoded = np.stack([self._arrivals.vector(item) for item, _ in named]) if encodes else None
        try:
            self._ranker.read(rows, Described([text for _, text in named], encoded),
                              [self._arrivals.similar(item) for item, _ in named])
        except Exception:  # whatever the algebra raises on what an item says
            if len(rows) > 1:
                for row in rows:
                    self._take([row], unread, encodes=encodes)
                return
            log.exception("item %s cannot be taken", named[0][0])
            self._ranker.unread.pop(rows[0], None)
        else:
            self._taken += len(rows)

    def close(self) -> None:
        """Disconnect."""
        self._points.close()
        self._updates.close()
        self._entries.close()


class Arrivals:
    """What was said and read of items so far. It decides whether an item can be taken; no I/O.

    Vectors stay, since another model version takes the same items again: 1.5 kB an item.
    """

    def __init__(self) -> None:
        self._said: dict[str, ItemUpdate] = {}
        self._vectors: dict[str, tuple[str, NDArray[np.float32]]] = {}
        self._asked: dict[str, str] = {}

    def said(self, update: ItemUpdate) -> None:
        """Note an update; the last one of an item counts."""
        self._said[update.item_id] = update

    def read(self, item: str, text: str, vector: NDArray[np.float32]) -> None:
        """Note the encoding of an item's text."""
        self._vectors[item] = text, vector
        self._asked.pop(item, None)

    def to_read(self, unread: Iterable[tuple[str, str]], encodes: bool) -> list[tuple[str, str]]:
        """Return the items, with texts, whose encodings are in the store and not read or asked for yet."""
        out = []
        for item, text in unread if encodes else ():
            held = self._vectors.get(item)
            if self._announced(item, text) and (held is None or held[0] != text) and self._asked.get(item) != text:
                self._asked[item] = text
                out.append((item, text))
        return out

    def ready(self, item: str, text: str, encodes: bool) -> bool:
        """Return whether all is here that an item needs."""
        held = self._vectors.get(item)
        return self._announced(item, text) and (not encodes or (held is not None and held[0] == text))

    def vector(self, item: str) -> NDArray[np.float32]:
        """Return an item's encoding."""
        return self._vectors[item][1]

    def similar(self, item: str) -> dict[str, float]:
        """Return the similar items of the fit."""
        return {one.item_id: one.score for one in self._said[item].similar}

    def _announced(self, item: str, text: str) -> bool:
        update = self._said.get(item)
        return update is not None and update.about == about(text)
