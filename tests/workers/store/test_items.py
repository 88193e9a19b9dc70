"""Item knowledge in all stores alike: the engine, the client's in-memory mode, the embedded store's process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import models as qm

from schemas.errors import FreshetError, StoreUnavailableError
from tests.workers.store.test_store import Server
from workers.store import QdrantStore
from workers.store.embedded.engine import EdgeItems
from workers.store.items import TEXT, ItemPoint, ItemStore, QdrantItems, item_point_id, write_missing

DIM = 8


def item(name: str, version: int = 1, axis: int = 0, **fields: object) -> ItemPoint:
    vector = np.zeros(DIM, np.float32)
    vector[axis] = 1.0
    return replace(ItemPoint(
        name, version, f"m{version}", vector, f"title of {name}", "soft, mild", "tiny", 1.7e9 + 0.25),
        **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("home"))
    yield made
    made.kill()


@pytest.fixture(params=["edge", "memory", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ItemStore]:
    made: ItemStore
    if request.param == "edge":
        made = EdgeItems(tmp_path / "store", DIM)
    elif request.param == "memory":
        made = QdrantItems(":memory:", DIM)
    else:
        running = request.getfixturevalue("server")
        made = QdrantItems(running.url, DIM, running.settings)
    made.ensure()
    yield made
    made.close()


def test_reads_back_what_was_written(store: ItemStore) -> None:
    written = [item("read-1"), item("read/2 ünïcode '; DROP", axis=3, written=""), item("read-3", axis=2)]
    store.upsert(written)
    held = store.read([point.item_id for point in written] + ["nothing"])
    assert set(held) == {point.item_id for point in written}
    for point in written:
        got = held[point.item_id]
        np.testing.assert_array_equal(got.vector, point.vector)
        assert replace(got, vector=point.vector) == point


def test_never_replaces_a_newer_version(store: ItemStore) -> None:
    store.upsert([item("v", 3, written="third")])
    store.upsert([item("v", 2, written="second")])
    assert store.read(["v"])["v"].written == "third"
    store.upsert([item("v", 4, written="fourth"), item("w", 1)])
    assert store.versions(["v", "w", "x"]) == {"v": 4, "w": 1}
    assert store.read(["v"])["v"].written == "fourth"


def test_what_is_there_is_skipped_and_the_rest_is_written(store: ItemStore) -> None:
    mark = str(uuid.uuid4())
    points = [item(f"{mark}-{at}", 5, axis=at % 4) for at in range(10)]
    store.upsert([item(f"{mark}-0", 4), item(f"{mark}-1", 5, written="as it was"), item(f"{mark}-2", 6)])
    assert list(write_missing(store, points, batch=4)) == [(4, 2), (8, 6), (10, 8)]
    assert store.versions([point.item_id for point in points]) == {
        point.item_id: 6 if point.item_id == f"{mark}-2" else 5 for point in points}
    assert store.read([f"{mark}-1"])[f"{mark}-1"].written == "as it was"
    assert list(write_missing(store, points)) == [(10, 0)]


def test_neighbours_are_nearest_first_without_the_excluded(store: ItemStore) -> None:
    tilted = np.array([0, 0, 0, 0, 1, 0.2, 0, 0], np.float32)
    store.upsert([item("self", axis=4), item("near", vector=tilted / np.linalg.norm(tilted)), item("far", axis=6)])
    found = store.neighbours(item("self", axis=4).vector, 2, exclude=["self"])
    assert found[0].item_id == "near"
    assert found[0].score == pytest.approx(1 / np.sqrt(1.04), abs=1e-3)
    assert "self" not in {neighbour.item_id for neighbour in found}


@pytest.mark.parametrize("bad", [np.full(DIM, np.nan, np.float32), np.zeros(DIM + 1, np.float32)])
def test_refuses_wrong_vectors_and_writes_nothing(store: ItemStore, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="item 'bad'"):
        store.upsert([item("fine-then-bad"), item("bad", vector=bad)])
    assert store.read(["fine-then-bad", "bad"]) == {}


def test_ensure_again_keeps_everything_and_empty_calls_do_nothing(store: ItemStore) -> None:
    store.upsert([item("kept")])
    store.upsert([])
    store.ensure()
    assert "kept" in store.read(["kept"])
    assert store.read([]) == {}
    assert store.count() >= 1


def test_a_damaged_point_is_left_out(store: ItemStore, caplog: pytest.LogCaptureFixture) -> None:
    store.upsert([item("sound")])
    fields = {"item": "another", "version": 3, "model_version": "m", "text": "", "written": "", "encoder": "",
              "fitted_at": 1.0}
    vector = {TEXT: item("x").vector.tolist()}
    if isinstance(store, EdgeItems):
        store._shard.upsert([(item_point_id("hurt"), vector, fields)], 9)
    else:
        assert isinstance(store, QdrantItems)
        store._write({9: [qm.PointStruct(id=item_point_id("hurt"), vector=vector, payload=fields)]})
    assert set(store.read(["hurt", "sound"])) == {"sound"}
    assert "hurt" in caplog.text


def test_users_and_items_are_two_collections(server: Server) -> None:
    users, items = (kind(server.url, DIM, server.settings) for kind in (QdrantStore, QdrantItems))
    users.ensure()
    items.ensure()
    before = users.count()
    items.upsert([item("apart")])
    assert users.count() == before
    with pytest.raises(FreshetError, match="encodings of width 8"):
        QdrantItems(server.url, DIM + 1, server.settings).ensure()


def test_both_shards_are_in_one_folder_and_survive_a_kill(tmp_path: Path) -> None:
    server = Server(tmp_path)
    items = QdrantItems(server.url, DIM, server.settings)
    items.ensure()  # before that of the users, whose shard is made in the folder around it
    items.upsert([item("kept")])
    QdrantStore(server.url, DIM, server.settings).ensure()
    assert "kept" in items.read(["kept"])
    server.kill()
    with pytest.raises(StoreUnavailableError):
        items.count()
    server.start()
    again = QdrantItems(server.url, DIM, server.settings)
    assert set(again.read(["kept"])) == {"kept"}
    assert sorted(path.name for path in (tmp_path / "store").iterdir() if path.name.startswith("."))[0] == ".items"
    server.kill()
