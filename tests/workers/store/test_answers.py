"""What each way in which a store can answer leads to, over real connections."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import format_datetime

import grpc
import numpy as np
import pytest
import torch
from qdrant_client.http.exceptions import ResponseHandlingException

from schemas.errors import FreshetError, PoisonError, StoreUnavailableError
from schemas.settings import QdrantSettings, load
from tests.workers.store.proxy import Fault, Proxy
from tests.workers.store.test_store import DIM, Server, point
from workers.store import QdrantStore
from workers.store.answers import (
    LONGEST_WAIT_S,
    StoreRefusedError,
    address,
    asked,
    check_version,
    connect,
    retry_after_s,
)
from workers.store.banks.bank import ServerBank
from workers.store.cache import CachedReader

pytestmark = pytest.mark.slow  # its second of patience is the point, and a busy machine may need more
SETTINGS = QdrantSettings(timeout_s=1)
PATIENT = QdrantSettings(timeout_s=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    yield server
    server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.url, server.settings.api_key)
    yield proxy
    proxy.close()


@pytest.fixture
def store(proxy: Proxy) -> Iterator[QdrantStore]:
    patient = QdrantStore(proxy.url, DIM, PATIENT)
    patient.ensure()
    patient.close()
    store = QdrantStore(proxy.url, DIM, SETTINGS)
    store.ensure()
    yield store
    store.close()


BUSY = {
    "429 and how long": (Fault(429, {"Retry-After": "7"}), 7.0),
    "429 without": (Fault(429), 0.0),
    "429 for a day": (Fault(429, {"Retry-After": "86400"}), LONGEST_WAIT_S),
    "429 with a fraction": (Fault(429, {"Retry-After": "1.5"}), 1.5),
    "429 with nonsense": (Fault(429, {"Retry-After": "soon"}), 0.0),
    "429 below zero": (Fault(429, {"Retry-After": "-3"}), 0.0),
    "503 and how long": (Fault(503, {"Retry-After": "4"}), 4.0),
    **{f"{status}": (Fault(status), 0.0) for status in (408, 425, 500, 502, 503, 504, 507, 599)},
    "reset, never seen": (Fault(cut="before"), 0.0),
    "reset, answer lost": (Fault(cut="after"), 0.0),
    "reset within the answer": (Fault(cut="middle"), 0.0),
    "ends within the answer": (Fault(cut="unlabelled"), 0.0),
    "a page of a proxy": (Fault(200, body=b"<html>log in</html>"), 0.0),
    "not UTF-8": (Fault(200, body=b'{"result": "\xff"}'), 0.0),
    "no result": (Fault(200, body=b"{}"), 0.0),
    "another shape": (Fault(200, body=b'{"result": 7, "status": "ok"}'), 0.0),
    "a list": (Fault(200, body=b"[]"), 0.0),
    "deep": (Fault(200, body=b"[" * 100_000), 0.0),
    "empty": (Fault(200, body=b""), 0.0),
    "slow": (Fault(delay_s=1.5), 0.0),
    "a byte at a time": (Fault(cut="trickle"), 0.0),
}


@pytest.mark.parametrize("call", ["read", "upsert", "bank"])
@pytest.mark.parametrize("name", BUSY)
def test_a_busy_or_broken_store_is_waited_for(
    name: str, call: str, store: QdrantStore, proxy: Proxy, request: pytest.FixtureRequest,
) -> None:
    fault, wait_s = BUSY[name]
    user = f"busy-{call}-{name}"
    bank = ServerBank(proxy.url, "users", torch.eye(3), SETTINGS)
    calls: dict[str, tuple[Callable[[], object], str]] = {
        "read": (lambda: store.read([user]), "/points"), "upsert": (lambda: store.upsert([point(user)]), "/batch"),
        "bank": (lambda: bank.nearest(torch.eye(3), 1, torch.arange(3)), "/query/batch")}
    run, path = calls[call]
    proxy.times(1, fault, path)
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError) as raised:
        run()
    assert raised.value.retry_after_s == wait_s
    assert time.monotonic() - started < 4.0
    assert proxy.faults == 1
    run()  # the same call later
    store.upsert([point(user)])
    assert store.read([user])[user].version == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_the_records_fault(status: int, store: QdrantStore, proxy: Proxy) -> None:
    proxy.times(1, Fault(status), "/batch")
    with pytest.raises(StoreRefusedError, match="made up") as raised:
        store.upsert([point("refused")])
    assert isinstance(raised.value, PoisonError)


@pytest.mark.parametrize("status", [301, 401, 403, 405, 411, 418])
def test_a_wrong_key_or_address_is_nobodys_record(status: int, store: QdrantStore, proxy: Proxy) -> None:
    proxy.times(1, Fault(status), "/batch")
    with pytest.raises(FreshetError, match="FRESHET_QDRANT") as raised:
        store.upsert([point("refused")])
    assert not isinstance(raised.value, PoisonError | StoreUnavailableError)


def test_a_collection_that_cannot_be_created_is_nobodys_record(proxy: Proxy) -> None:
    proxy.times(1, Fault(400), "/index")
    with pytest.raises(FreshetError, match="cannot be used") as raised:
        QdrantStore(proxy.url, DIM, SETTINGS).ensure()
    assert not isinstance(raised.value, PoisonError)


def test_half_a_batch_is_completed_by_the_next_try(store: QdrantStore, proxy: Proxy) -> None:
    batch = [point(f"half-{i}", 1 + i % 2) for i in range(1_200)]  # three requests
    left = [None, Fault(503)]
    proxy.plan = lambda _, path: left.pop(0) if left and "/batch" in path else None
    with pytest.raises(StoreUnavailableError):
        store.upsert(batch)
    here = store.read([p.user_id for p in batch])
    assert len(here) == 512
    assert store.upsert(batch) == [True] * 1_200
    assert len(store.read([p.user_id for p in batch])) == 1_200


def test_a_write_that_was_taken_but_is_not_there_is_not_announced(store: QdrantStore, proxy: Proxy) -> None:
    lost = b'{"result": [{"operation_id": 0, "status": "acknowledged"}], "status": "ok"}'
    proxy.times(1, Fault(200, body=lost), "/batch")
    with pytest.raises(StoreUnavailableError, match="took version 1 of a point but holds None"):
        store.upsert([point("never-there")])


@pytest.mark.parametrize("version", ["1.15.4", "1.9.0", "0.11.1"])
def test_a_server_that_ignores_conditions_is_refused(version: str, proxy: Proxy) -> None:
    body = f'{{"title": "qdrant - vector search engine", "version": "{version}"}}'.encode()
    proxy.plan = lambda _, path: Fault(200, body=body) if path == "/" else None
    store = QdrantStore(proxy.url, DIM, SETTINGS)
    with pytest.raises(FreshetError, match=rf"is Qdrant {version}; Freshet needs 1\.16 or newer"):
        store.ensure()
    with pytest.raises(FreshetError, match=r"Freshet needs 1\.16"):
        store.upsert([point("ann")])
    assert not [path for method, path, _ in proxy.seen if "/batch" in path]


def test_the_server_that_comes_back_is_asked_for_its_version(store: QdrantStore, proxy: Proxy) -> None:
    proxy.times(1, Fault(503), "/batch")
    with pytest.raises(StoreUnavailableError):
        store.upsert([point("back")])
    old = b'{"title": "qdrant", "version": "1.15.0"}'
    proxy.plan = lambda _, path: Fault(200, body=old) if path == "/" else None
    with pytest.raises(FreshetError, match=r"Freshet needs 1\.16"):
        store.upsert([point("back")])


@pytest.mark.parametrize("version", ["1.16.0", "1.16.3-dev", "1.20.0", "2.0.0"])
def test_newer_servers_are_taken(version: str) -> None:
    check_version("http://host:6333", version)


@pytest.mark.parametrize("version", ["", "latest", "1", "x.y"])
def test_a_server_without_a_version_is_refused(version: str) -> None:
    with pytest.raises(FreshetError, match="not one of Qdrant's"):
        check_version("http://host:6333", version)


def test_two_workers_create_the_collection(proxy: Proxy, store: QdrantStore) -> None:
    """Both find none, and the second is told that there is one."""
    proxy.times(1, Fault(200, body=b'{"result": {"exists": false}, "status": "ok"}'), "/exists")
    late = QdrantStore(proxy.url, DIM, SETTINGS)
    late.ensure()
    assert ("PUT", "/collections/user_knowledge") in [(method, path) for method, path, _ in proxy.seen]
    assert late.upsert([point("late")]) == [True]


class Test429InARow:
    def test_the_reader_answers_at_once_and_probes_no_sooner_than_told(
        self, store: QdrantStore, proxy: Proxy,
    ) -> None:
        store.upsert([point("ann")])
        reader = CachedReader(store)
        proxy.plan = lambda _, path: Fault(429, {"Retry-After": "2"})
        first = len(proxy.seen)
        asked = time.monotonic()
        assert reader.read({"ann": 1}).unavailable == {"ann"}
        for _ in range(50):
            started = time.monotonic()
            assert reader.read({"ann": 1}).unavailable == {"ann"}
            assert time.monotonic() - started < 0.1
        proxy.plan = lambda *_: None
        while not reader.available:
            assert time.monotonic() - asked < 20
            time.sleep(0.05)
        assert proxy.seen[first + 1][2] - proxy.seen[first][2] >= 2.0
        assert reader.read({"ann": 1}).points["ann"].version == 1
        reader.close()

    @pytest.mark.parametrize("status", [400, 401])
    def test_the_reader_goes_on_without_a_store_that_refuses(
        self, status: int, store: QdrantStore, proxy: Proxy,
    ) -> None:
        store.upsert([point("ann")])
        reader = CachedReader(store)
        proxy.times(1, Fault(status), "/points")
        assert reader.read({"ann": 1}).unavailable == {"ann"}
        reader.close()


KEY = "kQ7-demanded-by-the-server"


class TestKey:
    @pytest.fixture
    def guarded(self, proxy: Proxy) -> Proxy:
        proxy.plan = lambda *_: None if proxy.keys[-1] == KEY else Fault(401, body=b"Must provide an API key")
        return proxy

    @pytest.mark.parametrize("form", ["environment", "file", "toml"])
    def test_it_works_from_every_place_and_is_never_logged(
        self, form: str, guarded: Proxy, tmp_path: object, caplog: pytest.LogCaptureFixture,
        recwarn: pytest.WarningsRecorder,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        environ = {"FRESHET_QDRANT_URL": guarded.url, "FRESHET_HOME": str(tmp_path)}
        config = tmp_path / "freshet.toml"
        config.write_text("")
        if form == "environment":
            environ["FRESHET_QDRANT_API_KEY"] = KEY
        elif form == "file":
            (tmp_path / "key").write_text(KEY + "\n")
            environ["FRESHET_QDRANT_API_KEY_FILE"] = str(tmp_path / "key")
        else:
            config.write_text(f'[qdrant]\napi_key = "{KEY}"\n')
        settings = load(environ, config)
        store = QdrantStore.of(settings, DIM)
        assert store.upsert([point("keyed")]) == [True]
        assert set(guarded.keys) == {KEY}
        assert KEY not in caplog.text + repr(settings) + "".join(str(one.message) for one in recwarn)

    def test_a_wrong_or_missing_key_is_an_error_that_does_not_repeat_it(self, guarded: Proxy) -> None:
        for key in ("", "wrong-key"):
            with pytest.raises(FreshetError, match="FRESHET_QDRANT_API_KEY") as raised:
                QdrantStore(guarded.url, DIM, QdrantSettings(api_key=key)).ensure()
            assert "wrong-key" not in str(raised.value)

    @pytest.mark.parametrize("key", ["two\nlines-of-a-key", "sch-lüssel", "tab\tin-a-key"])
    def test_a_key_that_is_no_header_is_refused_without_repeating_it(self, key: str) -> None:
        with pytest.raises(FreshetError, match="copy it again") as raised:
            connect("http://127.0.0.1:9", QdrantSettings(api_key=key), 4)
        assert key not in str(raised.value)

    def test_a_password_in_the_url_is_not_shown(self) -> None:
        store = QdrantStore("http://me:s3cret@127.0.0.1:9", DIM, SETTINGS)
        with pytest.raises(StoreUnavailableError) as raised:
            store.read(["ann"])
        assert "s3cret" not in str(raised.value)

    def test_an_unencrypted_key_to_another_host_is_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        connect("http://qdrant.example.com:6333", QdrantSettings(api_key=KEY), 4).close()
        assert "sent to qdrant.example.com unencrypted" in caplog.text


@pytest.mark.parametrize("url", ["ftp://host:6333", "http://host:port", "http://[::1"])
def test_an_address_that_is_none_is_an_error_with_an_example(url: str) -> None:
    with pytest.raises(FreshetError, match="such as http://host:6333"):
        connect(url, QdrantSettings(), 4)


@pytest.mark.parametrize(("url", "message"), [
    ("http://", "it names no host"), ("http://host:6333/dashboard#/collections", "leave out"),
    ("http://host:6333/dashboard", "its page for people"), ("http://host:6333/?key=1", "leave out what follows"),
    ("http://host:99999", "such as http://host:6333")])
def test_an_address_with_more_than_an_address_is_an_error(url: str, message: str) -> None:
    with pytest.raises(FreshetError, match=message):
        QdrantStore(url, DIM)


@pytest.mark.parametrize(("url", "whole"), [
    ("http://host", "http://host:6333"), ("https://host/", "https://host:6333"), ("host:77", "http://host:77"),
    ("qdrant", "http://qdrant:6333"), ("http://host/behind/a/proxy/", "http://host:6333/behind/a/proxy"),
    ("http://[::1]", "http://[::1]:6333"), ("http://host:443", "http://host:443")])
def test_an_address_is_said_in_full(url: str, whole: str) -> None:
    assert address(url) == whole
    made = QdrantStore(url, DIM)
    assert made._client._client.rest_uri == whole  # as the client understands it
    made.close()


def test_a_port_that_was_left_out_is_in_the_error() -> None:
    with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1:6333 does not answer"):
        asked(address("http://127.0.0.1"), _refused)


def _refused() -> None:
    raise ResponseHandlingException(ConnectionRefusedError("refused"))


@pytest.mark.parametrize(("status", "body"), [
    (200, b"<html>hello</html>"), (404, b"<html>no</html>"), (404, b'{"detail":"Not Found"}'), (200, b'{"hello": 1}'),
    (200, b'{"name": "x", "version": {"number": "8.1"}, "tagline": "You Know, for Search"}'), (301, b""), (405, b"")])
def test_a_server_that_is_no_qdrant_is_said(status: int, body: bytes, proxy: Proxy) -> None:
    proxy.plan = lambda _, path: Fault(status, body=body)
    with pytest.raises(FreshetError, match=r"not\b.* as Qdrant does.*FRESHET_QDRANT_URL") as refused:
        QdrantStore(proxy.url, DIM, SETTINGS).identify()
    assert "\n" not in str(refused.value)
    with pytest.raises(FreshetError, match="FRESHET_QDRANT_URL"):
        QdrantStore(proxy.url, DIM, SETTINGS).ensure()


@pytest.mark.parametrize(("header", "seconds"), [
    (None, 0.0), ("", 0.0), ("12", 12.0), ("nan", 0.0), ("inf", LONGEST_WAIT_S), ("1e999", LONGEST_WAIT_S),
    (format_datetime(datetime.fromtimestamp(1_000_030, UTC), usegmt=True), 30.0),
    (format_datetime(datetime.fromtimestamp(10, UTC), usegmt=True), 0.0), ("Wed, 99 Foo", 0.0), ("9" * 5_000, 300.0),
])
def test_how_long_to_wait(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, 1_000_000.0) == seconds


class _Refuses(grpc.GenericRpcHandler):
    """Answers every call with one status."""

    def __init__(self, code: grpc.StatusCode, retry_after: str | None) -> None:
        self._code, self._retry_after = code, retry_after

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if self._retry_after is not None:
                context.set_trailing_metadata((("retry-after", self._retry_after),))
            context.abort(self._code, "made up")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


_CODE = grpc.StatusCode
RECORDS, OPERATORS, MISSING = {_CODE.INVALID_ARGUMENT, _CODE.OUT_OF_RANGE}, {
    _CODE.UNAUTHENTICATED, _CODE.PERMISSION_DENIED, _CODE.UNIMPLEMENTED, _CODE.ALREADY_EXISTS}, {_CODE.NOT_FOUND}


@pytest.mark.parametrize(("code", "retry_after"), [
    *((code, None) for code in _CODE if code is not _CODE.OK), (_CODE.RESOURCE_EXHAUSTED, "9"),
    (_CODE.RESOURCE_EXHAUSTED, "soon")])
def test_grpc_codes(code: grpc.StatusCode, retry_after: str | None) -> None:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Refuses(code, retry_after)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    store = QdrantStore(f"http://127.0.0.1:{port}", DIM, QdrantSettings(timeout_s=2, prefer_grpc=True, grpc_port=port))
    try:
        if code in MISSING:
            assert store.read(["ann"]) == {}
            return
        with pytest.raises(FreshetError) as raised:
            store.read(["ann"])
        assert isinstance(raised.value, StoreUnavailableError) == (code not in RECORDS | OPERATORS)
        assert isinstance(raised.value, PoisonError) == (code in RECORDS)
        if retry_after == "9":
            assert raised.value.retry_after_s == 9.0
    finally:
        store.close()
        server.stop(0)


def test_a_grpc_server_that_is_not_there() -> None:
    store = QdrantStore("http://127.0.0.1:9", DIM, QdrantSettings(timeout_s=1, prefer_grpc=True, grpc_port=9))
    with pytest.raises(StoreUnavailableError):
        store.upsert([point("ann", vectors=np.zeros((1, DIM), np.float16))])
