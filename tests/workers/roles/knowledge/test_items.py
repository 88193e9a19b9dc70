"""The store is filled with the item knowledge of the version in use, beside the role's work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import StoreUnavailableError
from schemas.settings import Settings
from tests.workers.store.test_item_files import encoding, publish
from workers.roles.knowledge import items as module
from workers.roles.knowledge.items import ItemFiller
from workers.store.embedded.engine import EdgeItems
from workers.store.items import ItemPoint

ROWS = encoding((1, 0), (0, 1), (0, 1))


def until(fulfilled: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not fulfilled():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Store(EdgeItems):
    """The engine's store, which stays open and is away as often as it is told."""

    away = 0

    def ensure(self) -> None:
        if self.away:
            self.away -= 1
            raise StoreUnavailableError("the store is away")
        super().ensure()

    def close(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 2)


def test_the_store_gets_the_items_of_the_version_and_of_the_next(tmp_path: Path, store: Store) -> None:
    first = publish(tmp_path, "m1", ["soft", "", ""], ROWS, created_at=1000.0)
    publish(tmp_path, "m2", ["softer", "", ""], ROWS, created_at=2000.0)
    filler = ItemFiller(Settings(home=tmp_path), first, lambda _: store)
    until(lambda: filler.counters["items_written"] == 3)
    filler.take("m1+adapter")  # the same items
    filler.take("m2")
    until(lambda: store.versions(["a", "b", "c"]) == dict.fromkeys("abc", 2_000_000))
    assert store.read(["a"])["a"].written == "softer"
    filler.take("m1")  # a version that is rolled back does not replace what is newer
    until(lambda: filler.counters == {"items_seen": 3, "items_written": 0})
    assert store.read(["a"])["a"].model_version == "m2"
    filler.close()


def test_it_waits_for_a_store_that_is_away(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", (0.01, 0.02))
    store.away = 3
    filler = ItemFiller(Settings(home=tmp_path), publish(tmp_path, encoded=ROWS), lambda _: store)
    until(lambda: filler.counters["items_written"] == 3)
    assert caplog.text.count("item knowledge waits") == 3
    filler.close()


def test_a_version_without_encodings_needs_no_store(tmp_path: Path) -> None:
    opened: list[int] = []
    filler = ItemFiller(
        Settings(home=tmp_path), publish(tmp_path, written=["soft", "", ""]), opened.append)  # type: ignore[arg-type]
    until(lambda: not filler._wake.is_set())
    filler.close()
    assert opened == []


def test_another_encoders_collection_is_logged_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    old = EdgeItems(tmp_path / "store", 3)
    old.ensure()
    old.upsert([ItemPoint("a", 1, "m0", np.ones(3, np.float32))])
    old.close()
    filler = ItemFiller(
        Settings(home=tmp_path), publish(tmp_path, encoded=ROWS), lambda dim: EdgeItems(tmp_path / "store", dim))
    until(lambda: "encodings of width 3" in caplog.text)
    filler.close()
    assert EdgeItems(tmp_path / "store", 3).count() == 1
