"""The process that owns the embedded store and answers the Qdrant calls `QdrantStore` makes, so that the other roles
talk to it exactly as they would to a Qdrant server. Anything else is refused with a text that says so.

It listens on this machine only, where a page in a browser can reach it as well (by a form, or by a name that resolves
to 127.0.0.1). So it answers only requests that name this machine as their host, come from no page, carry JSON and hold
the key of this run (`workers/home/store_key.py`). Run by `freshet up` as the role `store`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from schemas.errors import FreshetError
from schemas.files import write_whole
from schemas.settings import Settings
from workers.home.store_key import drop_key, keep_key, new_key
from workers.store.answers import LOOPBACK, OLDEST_SERVER
from workers.store.banks.shard import PREFIX, BankShards
from workers.store.embedded.engine import Shard
from workers.store.embedded.shards import KINDS, Shards

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
READY = "store.ready"
# Writes survive a crash of the process at once (write-ahead log); this bounds what a power cut can take.
_TEND_EVERY_S = 2.0
# In the engine's errors: what is wrong is the request. As failures of the store, clients would repeat it for ever.
_CALLERS_FAULT = (
    "dimension", "failed to parse", "Not existing vector name", "Wrong input", "Bad request", "to convert",
    "can't convert")
_MOST_FOUND = 10_000
# Of a bank, after the prefix of another Freshet or none: `ServerBank` ends its name with a hash.
_BANK = f"[^/]*{PREFIX}[^/]+_[0-9a-f]+"
_MAX_REQUEST = 32 * 2**20  # bytes, as a Qdrant server


@dataclass(frozen=True)
class _Unwrapped:
    """An answer that Qdrant does not wrap."""

    body: dict[str, Any]


class _RefusedError(Exception):
    """A request this store does not answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def application(shards: Shards, key: str) -> web.Application:
    """Return the web application that serves shards as the collections of their kinds, and banks of embeddings.

    Args:
        key: that every request must hold in the header `api-key`.
    """
    routes = _Routes(shards)
    banks = _BankRoutes()
    app = web.Application(client_max_size=_MAX_REQUEST)
    path, bank = "/collections/{collection}", f"/collections/{{collection:{_BANK}}}"
    for method, where, handler in (
        ("GET", f"{bank}/exists", banks.exists),
        ("PUT", bank, banks.create),
        ("PUT", f"{bank}/points", banks.put),
        ("POST", f"{bank}/points/query/batch", banks.query),
        ("POST", f"{bank}/points/count", banks.count),
        ("GET", "/healthz", routes.health),
        ("GET", "/", routes.version),
        ("GET", f"{path}/exists", routes.exists),
        ("GET", path, routes.info),
        ("PUT", path, routes.create),
        ("PUT", f"{path}/index", routes.index),
        ("POST", f"{path}/points/batch", routes.batch),
        ("POST", f"{path}/points", routes.retrieve),
        ("POST", f"{path}/points/delete", routes.delete),
        ("POST", f"{path}/points/query", routes.query),
        ("POST", f"{path}/points/count", routes.count),
        ("*", "/{rest:.*}", routes.unknown),
    ):
        app.router.add_route(method, where, _in_qdrants_shape(handler, key))
    return app


def _in_qdrants_shape(
    handler: Callable[[web.Request], Awaitable[Any]], key: str,
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return a handler that wraps results and errors as Qdrant does."""

    async def answer(request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        status, body = 200, {}
        try:
            _admit(request, key)
            result = await handler(request)
            body = result.body if isinstance(result, _Unwrapped) else {"result": result, "status": "ok"}
        except _RefusedError as error:
            status, body = error.status, {"status": {"error": str(error)}}
        except web.HTTPException as error:  # a body above the limit
            status, body = error.status, {"status": {"error": error.reason}}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            status, body = 400, {"status": {"error": f"Format error in JSON body: {error!r}"}}
        except BaseException as error:  # the engine raises bare Exception, and its panics are not even that
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if any(words in str(error) for words in _CALLERS_FAULT):
                status, body = 400, {"status": {"error": f"Wrong input: {error}"}}
            else:
                log.exception("%s %s failed", request.method, request.path)
                status, body = 500, {"status": {"error": f"Service internal error: {error}"}}
        body["time"] = time.perf_counter() - started
        return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")

    return answer


def _admit(request: web.Request, key: str) -> None:
    """Refuse what does not come from a client of this run."""
    try:
        host = urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:
        host = None
    if host not in LOOPBACK:
        raise _RefusedError(403, "the embedded store is asked by this machine's name only")
    if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
        raise _RefusedError(403, "the embedded store answers no web page")
    if request.method in ("POST", "PUT", "PATCH") and request.content_type != "application/json":
        raise _RefusedError(415, "the embedded store takes application/json only")
    if not hmac.compare_digest(request.headers.get("api-key", "").encode(errors="replace"), key.encode()):
        raise _RefusedError(401, "the embedded store wants the key of this run; `freshet` commands read it from "
                                 "run/store.key of their home")


class _Routes:
    """Handlers; each returns the `result` of Qdrant's answer. The engine's calls take milliseconds and stay inline."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def health(self, _: web.Request) -> str:
        return "healthz check passed"

    async def version(self, _: web.Request) -> _Unwrapped:
        # That of the calls it answers: the first server with conditional writes.
        return _Unwrapped({"title": "Freshet's embedded store", "version": ".".join(map(str, (*OLDEST_SERVER, 0)))})

    async def unknown(self, request: web.Request) -> None:
        raise _RefusedError(404, f"the embedded store does not know {request.method} {request.path}")

    async def exists(self, request: web.Request) -> dict[str, bool]:
        shard = self._shards.find(request.match_info["collection"])
        return {"exists": shard is not None and shard.dim is not None}

    async def info(self, request: web.Request) -> dict[str, Any]:
        shard = self._shard(request)
        return {
            "status": "green", "optimizer_status": "ok", "segments_count": 1, "points_count": shard.count(),
            "payload_schema": {},
            "config": {
                "params": {"vectors": shard.kind.described(shard.dim or 0)},
                "hnsw_config": {"m": 0, "ef_construct": 100, "full_scan_threshold": 10_000},  # no graph: exact search
                "optimizer_config": {"default_segment_number": 1, "flush_interval_sec": int(_TEND_EVERY_S)},
            },
        }

    async def create(self, request: web.Request) -> bool:
        named = (await _json(request)).get("vectors", {})
        name = request.match_info["collection"]
        shard = self._shards.find(name)
        if shard is None or set(named) != set(shard.kind.described(1)):
            offered = ", ".join(f"{kind.collection} with {' and '.join(kind.described(1))}" for kind in KINDS)
            raise _RefusedError(400, f"the embedded store has only {offered}")
        if shard.dim is not None:
            raise _RefusedError(409, f"Wrong input: Collection `{name}` already exists!")
        self._shards.create(name, int(named[shard.kind.search]["size"]))
        return True

    async def index(self, request: web.Request) -> dict[str, Any]:
        self._shard(request)  # a conditional write names its points by id: there is nothing an index would speed up
        return {"operation_id": 0, "status": "completed"}

    async def batch(self, request: web.Request) -> list[dict[str, Any]]:
        shard = self._shard(request)
        done: list[dict[str, Any]] = []
        for operation in (await _json(request))["operations"]:
            if set(operation) != {"upsert"}:
                raise _RefusedError(400, f"the embedded store only upserts, not {sorted(operation)}")
            points = operation["upsert"]["points"]
            below = _below(operation["upsert"].get("update_filter"))
            shard.upsert([(p["id"], p["vector"], p["payload"]) for p in points], below)
            done.append({"operation_id": len(done), "status": "completed"})
        return done

    async def retrieve(self, request: web.Request) -> list[dict[str, Any]]:
        shard = self._shard(request)
        asked = await _json(request)
        found = shard.retrieve(asked["ids"], asked.get("with_payload", True), asked.get("with_vector", False))
        return [{"id": id_, "payload": fields, "vector": named} for id_, fields, named in found]

    async def delete(self, request: web.Request) -> dict[str, Any]:
        shard = self._shard(request)
        asked = await _json(request)
        if set(asked) == {"points"}:
            shard.delete([str(id_) for id_ in asked["points"]], None)
        else:
            shard.delete(*_with_version(asked.get("filter")))
        return {"operation_id": 0, "status": "completed"}

    async def query(self, request: web.Request) -> dict[str, Any]:
        shard = self._shard(request)
        asked = await _json(request)
        if asked.get("using") != shard.kind.search or set(asked.get("query") or {}) != {"nearest"}:
            raise _RefusedError(400, f"the embedded store searches nearest by {shard.kind.search} only")
        found = shard.nearest(asked["query"]["nearest"], _limit(asked["limit"]), _excluded(asked.get("filter")))
        return {"points": [
            {"id": id_, "version": 0, "score": score, "payload": fields} for id_, score, fields in found]}

    async def count(self, request: web.Request) -> dict[str, int]:
        shard = self._shard(request)
        return {"count": shard.count()}

    def _shard(self, request: web.Request) -> Shard:
        name = request.match_info["collection"]
        shard = self._shards.find(name)
        if shard is None or shard.dim is None:
            raise _RefusedError(404, f"Not found: Collection `{name}` doesn't exist!")
        return shard


class _BankRoutes:
    """Handlers of the collections `freshet_…`; each returns the `result` of Qdrant's answer."""

    def __init__(self) -> None:
        self._banks = BankShards()

    async def exists(self, request: web.Request) -> dict[str, bool]:
        return {"exists": self._banks.has(request.match_info["collection"])}

    async def create(self, request: web.Request) -> bool:
        await self._banks.create(request.match_info["collection"], await _json(request))
        return True

    async def put(self, request: web.Request) -> dict[str, Any]:
        return await self._banks.put(self._name(request), await _json(request))

    async def query(self, request: web.Request) -> list[Any]:
        name, asked = self._name(request), await _json(request)
        return await self._banks.query(name, [
            (search["query"]["nearest"], _limit(search["limit"]), [int(id_) for id_ in _excluded(search.get("filter"))])
            for search in asked["searches"]])

    async def count(self, request: web.Request) -> dict[str, int]:
        return await self._banks.count(self._name(request))

    def _name(self, request: web.Request) -> str:
        name = request.match_info["collection"]
        if not self._banks.has(name):
            raise _RefusedError(404, f"Not found: Collection `{name}` doesn't exist!")
        return name


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        asked = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise _RefusedError(400, f"Format error in JSON body: {error}") from error
    if not isinstance(asked, dict):
        raise _RefusedError(400, "Format error in JSON body: expected an object")
    return asked


def _limit(value: Any) -> int:
    number = int(value)
    if not 0 <= number <= _MOST_FOUND:
        raise ValueError(f"limit {number}: 0 to {_MOST_FOUND} are possible")
    return number


def _below(condition: Any) -> int:
    """Return v of the one condition this store knows, `version < v`."""
    try:
        (one,) = condition["must"]
        if one["key"] == "version" and set(condition) == {"must"} and list(one["range"]) == ["lt"]:
            return int(one["range"]["lt"])
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise _RefusedError(400, "the embedded store writes on the condition `version < v` only")


def _with_version(condition: Any) -> tuple[list[str], int]:
    """Return ids and version of the one condition on which this store deletes."""
    try:
        ids, version = condition["must"]
        if set(condition) == {"must"} and version["key"] == "version":
            return [str(id_) for id_ in ids["has_id"]], int(version["match"]["value"])
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise _RefusedError(400, "the embedded store deletes by has_id, or by has_id and a version only")


def _excluded(condition: Any) -> list[str]:
    """Return the ids a search leaves out."""
    if condition is None:
        return []
    try:
        (one,) = condition["must_not"]
        return list(one["has_id"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _RefusedError(400, "the embedded store filters a search by must_not has_id only") from None


def main(settings: Settings, port: int = 0) -> None:
    """Serve the store of `settings.home` until SIGTERM or SIGINT; `run/store.ready` then holds its URL.

    Its key is `qdrant.api_key`, or a new one; `run/store.key` holds it.

    Args:
        port: to listen on; 0 = any free one.

    Raises:
        FreshetError: another process owns the folder, or the port is taken.
    """
    asyncio.run(_serve(settings, port))


async def _serve(settings: Settings, port: int) -> None:
    ready = settings.home / "run" / READY
    ready.parent.mkdir(parents=True, exist_ok=True)
    folder = settings.home / "store"
    shards = Shards(folder)  # before the ready file is touched: that may be the other owner's
    ready.unlink(missing_ok=True)
    key = settings.qdrant.api_key or new_key()
    runner = web.AppRunner(application(shards, key), access_log=None)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    try:
        await runner.setup()
        site = web.TCPSite(runner, HOST, port)
        try:
            await site.start()
        except OSError as error:
            raise FreshetError(f"the knowledge store cannot listen on port {port}: {error}") from error
        url = f"http://{HOST}:{runner.addresses[0][1]}"
        log.info("knowledge store at %s, %s", url, folder)
        keep_key(settings.home, url, key)
        write_whole(ready, url.encode(), durable=False)  # others read it as soon as it is there
        while not stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), _TEND_EVERY_S)
            for shard in shards:
                await asyncio.to_thread(shard.tend)
    finally:
        ready.unlink(missing_ok=True)
        drop_key(settings.home)
        await runner.cleanup()
        shards.close()
