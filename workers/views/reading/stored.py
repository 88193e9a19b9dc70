"""What the store holds of a user and near an item.

qdrant-client takes 50 MB and seconds to import: where no store is set, it stays out.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from schemas.errors import FreshetError
from schemas.settings import Settings
from workers.views.facts import NamedItem, StoredKnowledge
from workers.views.reading.catalogue import NEIGHBOURS, ShownItems

if TYPE_CHECKING:
    from workers.store.items import QdrantItems
    from workers.store.qdrant import QdrantStore

_EVIDENCE = 12  # items of a user's evidence that are shown


class Stored:
    """Asks the store; safe to call from several threads. It creates no collection."""

    def __init__(self, settings: Settings, catalogue: ShownItems) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._users: tuple[int, QdrantStore] | None = None
        self._items: tuple[int, QdrantItems] | None = None

    def prepare(self) -> None:
        """Ask the store something, if there is one.

        The first question imports the client, reads the system's certificates and builds models of answers: seconds of
        the interpreter, in which no request would be answered.
        """
        self.user("")
        if (first := self._catalogue.named(0, 0.0)) is not None:
            self.near(first.item_id)

    def user(self, user_id: str) -> tuple[StoredKnowledge | None, str]:
        """Return a user's knowledge, and why it is not known, "" = it is, or there is none."""
        try:
            store = self._of_users()
            if store is None:
                return None, self._why()
            point = store.read([user_id]).get(user_id)
        except FreshetError as error:
            return None, str(error)
        if point is None:
            return None, ""
        evidence = sorted(zip(point.weights, point.items, strict=False), reverse=True)[:_EVIDENCE]
        return StoredKnowledge(
            version=point.version, model_version=point.model_version, reason=point.reason,
            generated_at=point.generated_at, event_time=point.event_time, count=point.count,
            shape=(int(point.vectors.shape[0]), int(point.vectors.shape[1])), codes=tuple(point.codes),
            evidence=tuple(item for weight, row in evidence
                           if (item := self._catalogue.named(int(row), float(weight))) is not None)), ""

    def near(self, item_id: str) -> tuple[tuple[NamedItem, ...], str]:
        """Return the items whose texts are nearest, and why they are not known, "" = they are, or there are none."""
        try:
            store = self._of_items()
            if store is None:
                return (), self._why()
            point = store.read([item_id]).get(item_id)
            found = store.neighbours(point.vector, NEIGHBOURS, [item_id]) if point is not None else []
        except FreshetError as error:
            return (), str(error)
        return tuple(NamedItem(one.item_id, self._catalogue.title(one.item_id), one.score) for one in found), ""

    def close(self) -> None:
        """Disconnect."""
        for held in (self._users, self._items):
            if held is not None:
                held[1].close()

    def _why(self) -> str:
        return "" if self._settings.qdrant.url else "no store is set: FRESHET_QDRANT_URL"

    def _of_users(self) -> QdrantStore | None:
        dim = self._catalogue.dim
        if not self._settings.qdrant.url or not dim:
            return None
        from workers.store.qdrant import QdrantStore

        with self._lock:
            if self._users is None or self._users[0] != dim:
                self._users = dim, QdrantStore.at(self._settings, dim)
            return self._users[1]

    def _of_items(self) -> QdrantItems | None:
        dim = self._catalogue.encoding
        if not self._settings.qdrant.url or not dim:
            return None
        from workers.store.items import QdrantItems

        with self._lock:
            if self._items is None or self._items[0] != dim:
                self._items = dim, QdrantItems.at(self._settings, dim)
            return self._items[1]
