"""All stores behave the same: Qdrant's engine in-process, its client's in-memory mode, the embedded store's process."""

from __future__ import annotations

import http.client
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as qe
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from qdrant_client import models as qm

from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings
from workers.home.store_key import keep_key, kept_key, new_key
from workers.store import KnowledgePoint, KnowledgeStore, QdrantStore, point_id
from workers.store.embedded.engine import EdgeStore, Shard
from workers.store.point import payload

DIM = 8


def point(user: str = "ann", version: int = 1, fill: float = 0.1, **fields: object) -> KnowledgePoint:
    rng = np.random.default_rng(abs(hash((user, version))) % 2**32)
    made = KnowledgePoint(
        user, version, "m1", np.full((3, DIM), fill, np.float16), rng.normal(size=DIM).astype(np.float32),
        "0f" * 8, "drift", 1.7e9 + 0.25, 9.8e8 + version, 10 + version, (7, 0, 3))
    return replace(made, **fields)  # type: ignore[arg-type]


class Server:
    """The store's process on a fixed port, which tests kill and start again."""

    def __init__(self, home: Path, environ: dict[str, str] | None = None) -> None:
        self.home = home
        self.environ = {"FRESHET_QDRANT_API_KEY": new_key()} | (environ or {})  # handed on over restarts, as `up` does
        self.port = 0
        self.start()

    def start(self) -> None:
        ready = self.home / "run" / "store.ready"
        ready.unlink(missing_ok=True)
        code = ("import sys; from workers.store.embedded.server import main; from schemas.settings import load; "
                f"main(load(), {self.port})")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **self.environ, "FRESHET_HOME": str(self.home)})
        deadline = time.monotonic() + 90  # imports alone take 30 s where many tests share two cores
        while not (ready.is_file() and ready.read_text()):
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.02)
        self.url = ready.read_text()
        self.settings = QdrantSettings(url=self.url, timeout_s=5, api_key=kept_key(self.home, self.url))
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    yield server
    server.kill()


@pytest.fixture(params=["edge", "memory", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KnowledgeStore]:
    made: KnowledgeStore
    if request.param == "edge":
        made = EdgeStore(tmp_path / "store", DIM)
    elif request.param == "memory":
        made = QdrantStore(":memory:", DIM)
    else:
        server = request.getfixturevalue("server")
        made = QdrantStore(server.url, DIM, server.settings)
    made.ensure()
    yield made
    made.close()


class TestAnyStore:
    """Users differ per test: the server's collection is shared."""

    def test_erases_users_and_takes_an_older_version_then(self, store: KnowledgeStore) -> None:
        store.upsert([point("erased-1", 7), point("erased-2", 7)])
        assert store.erase(["erased-1", "erased-nobody"]) == {"erased-1"}
        assert store.erase(["erased-1"]) == set()
        assert store.read(["erased-1", "erased-2"]).keys() == {"erased-2"}
        assert store.upsert([point("erased-1", 1)]) == [True]

    def test_reads_back_what_was_written(self, store: KnowledgeStore) -> None:
        written = [point(user) for user in ("read-1", "read/2 ünïcode '; DROP", "read-3")]
        assert store.upsert(written) == [True, True, True]
        held = store.read([p.user_id for p in written] + ["nobody"])
        assert set(held) == {p.user_id for p in written}
        for p in written:
            got = held[p.user_id]
            np.testing.assert_array_equal(got.vectors, p.vectors)
            assert got.vectors.dtype == np.float16
            np.testing.assert_allclose(got.pooled, p.pooled / np.linalg.norm(p.pooled), atol=1e-6)
            fields = ("version", "model_version", "history_hash", "reason", "generated_at", "event_time", "count")
            assert [getattr(got, f) for f in fields] == [getattr(p, f) for f in fields]

    def test_never_replaces_a_newer_version(self, store: KnowledgeStore) -> None:
        assert store.upsert([point("v", 3, fill=0.3)]) == [True]
        assert store.upsert([point("v", 2, fill=0.2)]) == [False]
        assert store.read(["v"])["v"].vectors[0, 0] == np.float16(0.3)
        assert store.upsert([point("v", 4, fill=0.4)]) == [True]
        assert store.read(["v"])["v"].version == 4

    def test_a_repeated_write_counts_as_written(self, store: KnowledgeStore) -> None:
        assert store.upsert([point("again", 2)]) == [True]
        assert store.upsert([point("again", 2)]) == [True]

    def test_a_batch_of_mixed_versions_is_decided_per_point(self, store: KnowledgeStore) -> None:
        store.upsert([point("mix-a", 5), point("mix-b", 1)])
        assert store.upsert([point("mix-a", 4), point("mix-b", 2), point("mix-c", 9)]) == [False, True, True]
        held = store.read(["mix-a", "mix-b", "mix-c"])
        assert {user: p.version for user, p in held.items()} == {"mix-a": 5, "mix-b": 2, "mix-c": 9}

    def test_one_user_twice_in_a_batch_keeps_the_highest(self, store: KnowledgeStore) -> None:
        assert store.upsert([point("twice", 7), point("twice", 6)]) == [True, False]
        assert store.read(["twice"])["twice"].version == 7

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_refuses_non_finite_vectors_and_writes_nothing(self, store: KnowledgeStore, bad: float) -> None:
        with pytest.raises(ValueError, match="not finite"):
            store.upsert([point("fine-then-bad"), point("bad", fill=bad)])
        assert store.read(["fine-then-bad", "bad"]) == {}

    def test_refuses_another_width(self, store: KnowledgeStore) -> None:
        with pytest.raises(ValueError, match="shape"):
            store.upsert([point("wide", vectors=np.zeros((3, DIM + 1), np.float16))])

    def test_neighbours_are_nearest_first_without_the_excluded(self, store: KnowledgeStore) -> None:
        axis = np.zeros(DIM, np.float32)
        axis[5] = 1.0
        tilted = axis.copy()
        tilted[6] = 0.2
        store.upsert([point("self", pooled=axis * 3), point("near", pooled=tilted), point("far", pooled=-axis)])
        found = store.neighbours(axis, 2, exclude=["self"])
        assert found[0].user_id == "near"
        assert found[0].score == pytest.approx(1 / np.sqrt(1.04), abs=1e-5)
        assert "self" not in {neighbour.user_id for neighbour in found}
        assert store.neighbours(axis, 1)[0].user_id == "self"

    def test_counts_users_not_writes(self, store: KnowledgeStore) -> None:
        before = store.count()
        store.upsert([point("count-a"), point("count-b")])
        store.upsert([point("count-a", 2)])
        assert store.count() == before + 2

    def test_ensure_again_keeps_everything(self, store: KnowledgeStore) -> None:
        store.upsert([point("kept")])
        store.ensure()
        assert "kept" in store.read(["kept"])

    def test_empty_calls_do_nothing(self, store: KnowledgeStore) -> None:
        assert store.upsert([]) == []
        assert store.read([]) == {}

    @given(versions=st.lists(st.integers(1, 6), min_size=1, max_size=12), cut=st.integers(1, 5))
    @hypothesis_settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_writes_in_any_order_end_with_the_highest_version(
        self, store: KnowledgeStore, versions: list[int], cut: int,
    ) -> None:
        user = f"any-{uuid.uuid4()}"  # a new user per example, even if hypothesis repeats one
        for start in range(0, len(versions), cut):
            store.upsert([point(user, version, fill=version / 8) for version in versions[start:start + cut]])
        held = store.read([user])[user]
        assert held.version == max(versions)
        assert held.vectors[0, 0] == np.float16(max(versions) / 8)


def write_raw(store: KnowledgeStore, user: str, fields: dict[str, object], named: dict[str, object]) -> None:
    """Write a point as another program might, whatever it holds."""
    if isinstance(store, EdgeStore):
        store._shard._shard.update(qe.UpdateOperation.upsert_points([qe.Point(point_id(user), named, fields)]))
        return
    assert isinstance(store, QdrantStore)
    if store._local:
        store._client.upsert("user_knowledge", [qm.PointStruct(id=point_id(user), vector=named, payload=fields)])
    else:  # the embedded server only writes on a condition: one that any version fulfils, and none
        store._client.batch_update_points("user_knowledge", [
            qm.UpsertOperation(upsert=qm.PointsList(
                points=[qm.PointStruct(id=point_id(user), vector=named, payload=fields)],
                update_filter=qm.Filter(must=[qm.FieldCondition(key="version", range=qm.Range(lt=2**53))])))])


def damages() -> dict[str, Callable[[dict, dict], object]]:
    """What can go wrong with a stored point, by what it does to payload and vectors."""
    out: dict[str, Callable[[dict, dict], object]] = {
        "empty payload": lambda fields, _: fields.clear(),
        "another user": lambda fields, _: fields.update(user="eve"),
        "a flipped bit": lambda _, named: named["knowledge"][1].__setitem__(2, 0.25),
        "lost vectors": lambda _, named: named.pop("knowledge"),
        "a lost row": lambda _, named: named["knowledge"].pop(),
        "unpaired evidence": lambda fields, _: fields.update(items=[1, 2], weights=[3]),
        "evidence below 0": lambda fields, _: fields.update(items=[-1], weights=[3]),
        "codes of text": lambda fields, _: fields.update(codes=["a"]),
        "another count": lambda fields, _: fields.update(count=999),
        "an absurd version": lambda fields, _: fields.update(version=2**60),
    }
    for name in ("user", "version", "model_version", "history_hash", "generated_at", "event_time", "count"):
        out[f"no {name}"] = lambda fields, _, name=name: fields.pop(name)
        for wrong in (None, [5, 7], {"a": 1}, True, "", -1.5):
            if not (name in ("generated_at", "event_time") and wrong in (True, -1.5)) and not (
                    name == "count" and wrong == -1.5) and not (name == "history_hash" and wrong == ""):
                out[f"{name} is {wrong!r}"] = lambda fields, _, name=name, wrong=wrong: fields.update({name: wrong})
    return out


class TestDamage:
    @pytest.mark.parametrize("name", damages())
    def test_it_is_found_named_and_replaced(self, name: str, store: KnowledgeStore) -> None:
        user, sound = f"hurt-{name}", point(f"fine-{name}", 3)
        hurt = point(user, 3)
        fields, named = payload(hurt), {"knowledge": hurt.vectors.tolist(), "pooled": hurt.pooled.tolist()}
        damages()[name](fields, named)
        write_raw(store, user, fields, named)
        store.upsert([sound])
        found = store.look([user, sound.user_id])
        assert set(found.points) == {sound.user_id}
        assert set(found.damaged) == {user}
        assert found.damaged[user].why
        assert store.read([user]) == {}
        store.neighbours(hurt.pooled, 3)
        store.discard(found.damaged.values())
        assert store.upsert([hurt]) == [True]
        assert store.read([user])[user].version == 3
        assert store.read([sound.user_id])[sound.user_id].version == 3

    def test_what_was_replaced_meanwhile_stays(self, store: KnowledgeStore) -> None:
        hurt = point("raced", 3)
        fields = payload(hurt) | {"count": "many"}
        write_raw(store, "raced", fields, {"knowledge": hurt.vectors.tolist(), "pooled": hurt.pooled.tolist()})
        found = store.look(["raced"])
        assert store.upsert([point("raced", 4)]) == [True]
        store.discard(found.damaged.values())
        assert store.read(["raced"])["raced"].version == 4


class TestEdge:
    def test_survives_closing_and_opening(self, tmp_path: Path) -> None:
        first = EdgeStore(tmp_path / "store", DIM)
        first.ensure()
        first.upsert([point("ann", 3)])
        first.close()
        second = EdgeStore(tmp_path / "store", DIM)
        second.ensure()
        assert second.upsert([point("ann", 2)]) == [False]
        second.close()

    def test_opening_twice_is_an_error(self, tmp_path: Path) -> None:
        first = EdgeStore(tmp_path / "store", DIM)
        first.ensure()
        with pytest.raises(FreshetError, match="in use by another process"):
            EdgeStore(tmp_path / "store", DIM)
        first.close()

    def test_another_width_is_an_error(self, tmp_path: Path) -> None:
        first = EdgeStore(tmp_path / "store", DIM)
        first.ensure()
        first.close()
        second = EdgeStore(tmp_path / "store", 2 * DIM)
        with pytest.raises(FreshetError, match=f"width {DIM}, but the model makes {2 * DIM}"):
            second.ensure()
        second.close()

    def test_overwritten_points_free_their_space(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.store.embedded.engine._VACUUM_EVERY", 500)
        store, sizes = EdgeStore(tmp_path / "store", DIM), []
        store.ensure()
        for version in range(1, 9):
            store.upsert([point(f"u{i}", version) for i in range(100)])
            store._shard.tend()
            sizes.append(store.count())
        assert set(sizes) == {100}
        assert {p.version for p in store.read([f"u{i}" for i in range(100)]).values()} == {8}
        store.close()


class TestServer:
    @pytest.mark.slow
    def test_everything_acknowledged_survives_kill_9(self, tmp_path: Path) -> None:
        server = Server(tmp_path)
        store = QdrantStore(server.url, DIM, replace(server.settings, timeout_s=1))
        store.ensure()
        acknowledged: list[str] = []

        def write() -> None:
            for i in range(10_000):
                batch = [point(f"u{i}-{j}") for j in range(8)]
                try:
                    store.upsert(batch)
                except StoreUnavailableError:
                    return
                acknowledged.extend(p.user_id for p in batch)

        writer = threading.Thread(target=write)
        writer.start()
        while len(acknowledged) < 200:
            time.sleep(0.005)
        server.kill()
        writer.join(20)
        server.start()
        try:
            assert set(store.read(acknowledged)) == set(acknowledged)  # the same client recovers by itself
        finally:
            server.kill()

    @pytest.mark.slow
    def test_an_unavailable_server_is_noticed_quickly(self, tmp_path: Path) -> None:
        server = Server(tmp_path)
        store = QdrantStore(server.url, DIM, replace(server.settings, timeout_s=1))
        store.ensure()
        store.upsert([point("ann")])
        server.kill()
        self._unavailable(lambda: store.read(["ann"]), within_s=1.0)
        server.start()
        assert "ann" in store.read(["ann"])
        server.process.send_signal(signal.SIGSTOP)  # it accepts connections but does not answer
        self._unavailable(lambda: store.read(["ann"]), within_s=3.0)
        server.process.send_signal(signal.SIGCONT)
        assert "ann" in store.read(["ann"])
        server.kill()

    @staticmethod
    def _unavailable(call: Callable[[], object], within_s: float) -> None:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            call()
        assert time.monotonic() - started < within_s

    @pytest.mark.slow
    def test_a_deleted_collection_is_created_again(self, tmp_path: Path) -> None:
        server = Server(tmp_path / "old")
        store = QdrantStore(server.url, DIM, server.settings)
        store.ensure()
        server.kill()
        server.home = tmp_path / "new"
        server.start()
        assert store.read(["ann"]) == {}
        assert store.upsert([point("ann")]) == [True]
        server.kill()

    @pytest.mark.slow
    def test_workers_may_create_the_collection_at_the_same_time(self, tmp_path: Path) -> None:
        server = Server(tmp_path)
        failures: list[BaseException] = []

        def ensure() -> None:
            try:
                QdrantStore(server.url, DIM, server.settings).ensure()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ensure) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.kill()
        assert failures == []

    def test_another_width_is_an_error(self, server: Server) -> None:
        QdrantStore(server.url, DIM, server.settings).ensure()
        with pytest.raises(FreshetError, match="width"):
            QdrantStore(server.url, 2 * DIM, server.settings).ensure()

    def test_a_reader_creates_no_collection(self, tmp_path: Path) -> None:
        server = Server(tmp_path)
        looker = QdrantStore(server.url, 2 * DIM, server.settings)
        assert (looker.count(), looker.read(["ann"])) == (0, {})
        QdrantStore(server.url, DIM, server.settings).ensure()
        server.kill()

    def test_unsupported_conditions_are_refused_in_qdrants_format(self, server: Server) -> None:
        import httpx

        QdrantStore(server.url, DIM, server.settings).ensure()
        url = f"{server.url}/collections/user_knowledge/points/batch"
        for body in ({"operations": [{"upsert": {"points": [], "update_filter": {"should": []}}}]},
                     {"operations": [{"delete": {"points": []}}]}, {"nothing": 1}, [1]):
            headers = {"api-key": server.settings.api_key}
            answer = httpx.request("PUT" if body == [1] else "POST", url, json=body, headers=headers)
            assert answer.status_code in (400, 404)
            assert answer.json()["status"]["error"]

    def test_a_second_owner_gets_an_error(self, server: Server) -> None:
        QdrantStore(server.url, DIM, server.settings).ensure()
        with pytest.raises(FreshetError, match="in use by another process"):
            Shard(server.home / "store")
        assert (server.home / "run" / "store.ready").is_file()


class TestWhoMayAsk:
    """Every program on this machine and every page in its browser can reach the port."""

    URL = "/collections/user_knowledge/points/batch"

    def ask(self, server: Server, method: str = "POST", path: str = URL, **headers: str | None) -> int:
        """Return the status of a request that a client of this run makes, with headers replaced or left out."""
        sent = {"Host": f"127.0.0.1:{server.port}", "Content-Type": "application/json",
                "api-key": server.settings.api_key}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.putrequest(method, path, skip_host=True)
        body = b'{"operations": []}'
        for name, value in {**sent, "Content-Length": str(len(body))}.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    @pytest.fixture(autouse=True)
    def ensured(self, server: Server) -> None:
        QdrantStore(server.url, DIM, server.settings).ensure()

    def test_a_client_of_this_run_may(self, server: Server) -> None:
        assert self.ask(server) == 200
        assert self.ask(server, Host=f"localhost:{server.port}") == 200
        assert self.ask(server, Content_Type="application/json; charset=utf-8") == 200

    @pytest.mark.parametrize("host", [
        "evil.example.com", "evil.example.com:80", "127.0.0.1.evil.example.com", "", "[::", "user@evil.example.com"])
    def test_a_name_that_resolves_to_this_machine_may_not(self, server: Server, host: str) -> None:
        assert self.ask(server, Host=host) in (400, 403)

    def test_a_page_may_not(self, server: Server) -> None:
        assert self.ask(server, Origin="http://evil.example.com") == 403
        assert self.ask(server, Origin="null") == 403
        assert self.ask(server, Sec_Fetch_Site="cross-site") == 403

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
    def test_a_form_may_not(self, server: Server, kind: str | None) -> None:
        assert self.ask(server, Content_Type=kind) == 415

    @pytest.mark.parametrize("key", [None, "", "guess", "\xfc"])
    @pytest.mark.parametrize("path", ["/", URL, "/collections/user_knowledge", "/collections/freshet_a_b/exists"])
    def test_without_the_key_nobody_may(self, server: Server, key: str | None, path: str) -> None:
        assert self.ask(server, path=path, method="POST" if path == self.URL else "GET", api_key=key) == 401

    def test_the_key_is_readable_by_its_user_only_and_new_in_every_run(self, tmp_path: Path) -> None:
        server = Server(tmp_path, {"FRESHET_QDRANT_API_KEY": ""})  # nobody hands one on
        first = server.settings.api_key
        assert len(first) > 40
        assert stat.S_IMODE((tmp_path / "run" / "store.key").stat().st_mode) == 0o600
        assert first not in (tmp_path / "run" / "store.ready").read_text()
        server.kill()
        server.start()
        assert server.settings.api_key != first
        server.process.terminate()
        server.process.wait(20)
        assert not (tmp_path / "run" / "store.key").exists()

    def test_the_supervisors_key_is_used(self, tmp_path: Path) -> None:
        keep_key(tmp_path, "http://127.0.0.1:1", "old")
        assert kept_key(tmp_path, "http://127.0.0.1:1") == "old"
        assert kept_key(tmp_path, "http://qdrant:6333") == ""  # another server: it gets no key of ours
        server = Server(tmp_path, environ={"FRESHET_QDRANT_API_KEY": "from-the-supervisor"})
        assert server.settings.api_key == "from-the-supervisor"
        server.kill()


def test_a_folder_with_its_owners_lock_or_a_killed_owners_remains_becomes_a_store(tmp_path: Path) -> None:
    """The lock made the folder non-empty, and no embedded stack could store knowledge any more."""
    folder = tmp_path / "store"
    (folder / "segments" / "half").mkdir(parents=True)
    (folder / "made").mkdir()
    (folder / "made" / "old").write_bytes(b"x")
    (folder / ".lock").write_text("1 on here")
    shard = Shard(folder)
    assert shard.create(DIM)
    assert not shard.create(DIM)
    shard.close()
    assert (folder / ".lock").read_text() == "1 on here"
    assert not (folder / "made").exists()
    assert Shard(folder).dim == DIM
