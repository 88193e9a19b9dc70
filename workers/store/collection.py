"""A collection of a Qdrant server: created when needed, again when it was lost, asked with the errors of `answers`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from qdrant_client import models as qm

from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings
from schemas.watch.instruments import counter, histogram
from workers.store.answers import (
    NO_QDRANT,
    AbsentError,
    StoreRefusedError,
    TakenError,
    address,
    asked,
    check_version,
    connect,
    without_password,
)

log = logging.getLogger(__name__)
T = TypeVar("T")
# Points per request. A point of 5×64 takes about 8 kB of JSON, as does one of 384, and a server accepts 32 MB per
# request. 512 points are far below that limit, and one request takes far less than the timeout.
BATCH = 512
_CONNECTIONS = 16
_SECONDS, _ERRORS = histogram("freshet_store_request_seconds"), counter("freshet_store_errors_total")


class Collection:
    """One collection over `qdrant-client`. Reads work without `ensure`: a missing collection has no points.

    Args:
        location: a server's URL, or ":memory:" for the client's in-memory implementation (tests only).
        name: of the collection.
        vectors: its named vectors.
        search: name of the vector whose width must fit.
        wrong_width: returns the error for a collection of another width, from where, held and wanted width.
        settings: key, protocol and timeout; the client rounds the timeout up to whole seconds.

    Raises:
        FreshetError: URL or key cannot be used.
    """

    def __init__(
        self, location: str, name: str, vectors: Mapping[str, qm.VectorParams], search: str,
        wrong_width: Callable[[str, int, int], FreshetError], settings: QdrantSettings | None = None,
    ) -> None:
        location = address(location)
        self._location, self._name, self._vectors, self._search = location, name, dict(vectors), search
        self._wrong_width = wrong_width
        self._local = location == ":memory:"
        self._owns = False  # set by `ensure`: a store used only for reading must not create a collection
        self._ensured = False  # of the server that answered last
        self._client = connect(location, settings or QdrantSettings(), _CONNECTIONS)

    def ensure(self) -> None:
        """Create the collection if it is missing. Several processes may do so at once.

        Raises:
            FreshetError: it exists with vectors of another width, or the server is too old for conditional writes.
        """
        self._owns = True
        self._ensure()

    def identify(self) -> None:
        """Ask the server what it is.

        Raises:
            StoreUnavailableError: it does not answer, or not as Qdrant does.
            FreshetError: it is an older Qdrant, or another server.
        """
        asked(self._location, self._identify)

    def count(self) -> int:
        """Return the number of points."""
        try:
            return self._call("count", lambda: self._client.count(self._name, exact=True)).count
        except AbsentError:
            return 0

    def close(self) -> None:
        """Release all resources. The store cannot be used afterwards."""
        self._client.close()

    def _write(self, groups: Mapping[int, list[qm.PointStruct]]) -> None:
        """Write points in one request, those of each version on the condition that the stored one is older."""
        if self._owns and not self._ensured:  # it was away: another server may be there now, an older one, too
            self.ensure()
        operations = [
            qm.UpsertOperation(upsert=qm.PointsList(points=group, update_filter=qm.Filter(must=[
                qm.FieldCondition(key="version", range=qm.Range(lt=version))])))
            for version, group in groups.items()]
        self._call("write", partial(self._client.batch_update_points, self._name, operations, wait=True))

    def _versions(self, ids: list[str]) -> dict[str, Any]:
        """Return the stored versions by id."""
        return {str(r.id): (r.payload or {}).get("version") for r in self._retrieve(ids, ["version"])}

    def _nearest(self, vector: list[float], n: int, exclude: list[str]) -> list[qm.ScoredPoint]:
        """Return the n points nearest by the vector for searching, without the excluded ids."""
        without = qm.Filter(must_not=[qm.HasIdCondition(has_id=list(exclude))]) if exclude else None
        return self._call("search", lambda: self._client.query_points(
            self._name, query=vector, using=self._search, limit=n, with_payload=True,
            query_filter=without)).points

    def _retrieve(self, ids: list[str], with_payload: Any, with_vectors: bool = False) -> list[qm.Record]:
        found: list[qm.Record] = []
        for start in range(0, len(ids), BATCH):
            part = ids[start:start + BATCH]
            try:
                found += self._call("read", partial(
                    self._client.retrieve, self._name, part, with_payload=with_payload, with_vectors=with_vectors))
            except AbsentError:
                return []
        return found

    def _delete(self, selector: qm.PointIdsList | qm.FilterSelector) -> None:
        self._call("delete", partial(self._client.delete, self._name, selector, wait=True))

    def _ensure(self) -> None:
        try:
            asked(self._location, self._prepare)
        except StoreRefusedError as error:  # no record is to blame
            raise FreshetError(f"the collection {self._name} cannot be used: {error}") from error
        self._ensured = True

    def _prepare(self) -> None:
        if not self._local:
            self._identify()
        if not self._client.collection_exists(self._name):
            self._create()
        params = self._client.get_collection(self._name).config.params.vectors
        held = params[self._search].size if isinstance(params, dict) and self._search in params else 0
        if held != self._vectors[self._search].size:
            raise self._wrong_width(
                f"{self._name} at {without_password(self._location)}", held, self._vectors[self._search].size)
        if not self._local:
            # Conditional writes name their points by id and need no index. But a server in strict mode refuses a filter
            # on a field without an index.
            self._client.create_payload_index(self._name, "version", qm.PayloadSchemaType.INTEGER)

    def _identify(self) -> None:
        try:
            version = asked(self._location, self._client.info).version
        except AbsentError:  # Qdrant says its version at its root
            raise FreshetError(f"the server at {without_password(self._location)} answers 404, {NO_QDRANT}") from None
        check_version(self._location, version)

    def _create(self) -> None:
        try:
            asked(self._location, lambda: self._client.create_collection(self._name, vectors_config=self._vectors))
        except TakenError:
            log.info("another worker created %s first", self._name)

    def _call(self, operation: str, action: Callable[[], T], recreate: bool = True) -> T:
        """Run one call. If the collection has disappeared (a server with a new disk), it is created again once.

        Args:
            operation: what it is called in the metrics.
        """
        try:
            with _SECONDS.labels(operation).time():
                return asked(self._location, action)
        except AbsentError as error:
            if not recreate:
                raise
            if not self._owns:
                raise AbsentError(
                    f"{self._name} does not exist at {without_password(self._location)} yet") from error
            self._ensure()
            return self._call(operation, action, recreate=False)
        except StoreUnavailableError:
            self._ensured = False
            _ERRORS.labels(operation, "unavailable").inc()
            raise
        except FreshetError as error:
            _ERRORS.labels(operation, "refused" if isinstance(error, StoreRefusedError) else "other").inc()
            raise
