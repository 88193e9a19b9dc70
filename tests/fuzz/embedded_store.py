"""Requests to the embedded store: a mutated body for each call it knows. aiohttp parses lines and headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
from aiohttp import web
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request

from schemas.errors import FreshetError
from tests.fuzz.campaign import Decoder
from tests.fuzz.messages import DIM, POINT
from workers.store.embedded.server import application
from workers.store.embedded.shards import KINDS, Shards
from workers.store.items import ITEMS, TEXT, ItemPoint, item_payload, item_point_id
from workers.store.point import COLLECTION, payload, point_id, vectors

KEY = "key"
_AT = f"/collections/{COLLECTION}"
_BANK = "/collections/freshet_users_00"
_WRITE = {"operations": [{"upsert": {
    "points": [{"id": point_id("u"), "vector": vectors(POINT), "payload": payload(POINT)}],
    "update_filter": {"must": [{"key": "version", "range": {"lt": 3}}]}}}]}
_ITEMS = f"/collections/{ITEMS}"
_ITEM = ItemPoint("i", 2, "m1", np.full(DIM, 0.5, np.float32), "a soap", "mild, soft")
REQUESTS: dict[str, object] = {
    f"POST {_ITEMS}/points/batch": {"operations": [{"upsert": {
        "points": [{"id": item_point_id("i"), "vector": {TEXT: _ITEM.vector.tolist()}, "payload": item_payload(_ITEM)}],
        "update_filter": {"must": [{"key": "version", "range": {"lt": 3}}]}}}]},
    f"POST {_ITEMS}/points/query": {"query": {"nearest": [0.5] * DIM}, "using": TEXT, "limit": 3},
    f"POST {_AT}/points/batch": _WRITE,
    f"POST {_AT}/points": {"ids": [point_id("u")], "with_payload": True, "with_vector": True},
    f"POST {_AT}/points?": {"ids": [point_id("u")], "with_payload": ["version"], "with_vector": False},
    f"POST {_AT}/points/query": {
        "query": {"nearest": [0.5] * DIM}, "using": "pooled", "limit": 3,
        "filter": {"must_not": [{"has_id": [point_id("v")]}]}},
    f"POST {_AT}/points/count": {"exact": True},
    f"POST {_AT}/points/delete": {"points": [point_id("w")]},
    f"POST {_AT}/points/delete?": {"filter": {"must": [
        {"has_id": [point_id("w")]}, {"key": "version", "match": {"value": 3}}]}},
    f"PUT {_BANK}/points": {"points": [{"id": 1, "vector": [0.5, 0.5]}]},
    f"POST {_BANK}/points/query/batch": {"searches": [
        {"query": {"nearest": [0.5, 0.5]}, "limit": 2, "filter": {"must_not": [{"has_id": [1]}]}}]},
    f"POST {_BANK}/points/count": {},
}


class FailedRequestError(Exception):
    """The store answered with its own failure, or with none."""


@contextmanager
def store(folder: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that sends a request through the store's application, routing included."""
    shards = Shards(folder / "store")
    for kind in KINDS:
        shards.create(kind.collection, DIM)
    app = application(shards, KEY)
    app.freeze()
    loop = asyncio.new_event_loop()

    prepared = {}  # request line → request and its route: making them takes ten times as long as an answer

    async def ask(line: str, body: bytes) -> web.StreamResponse:
        if line not in prepared:
            method, _, path = line.partition(" ")
            sound = make_mocked_request(method, path, app=app, headers={
                "Host": "127.0.0.1", "api-key": KEY, "Content-Type": "application/json"})
            route = await app.router.resolve(sound)
            route.add_app(app)
            prepared[line] = sound, route
        sound, route = prepared[line]
        stream = StreamReader(sound.protocol, 2**16, loop=loop)
        stream.feed_data(body)
        stream.feed_eof()
        request = web.Request(
            sound._message, stream, sound.protocol, sound._payload_writer, sound._task, loop,
            client_max_size=32 * 2**20)
        request._match_info = route
        return await route.handler(request)

    def run(data: bytes) -> None:
        line, _, body = data.partition(b"\n")
        answer = loop.run_until_complete(ask(line.decode(), body))
        if answer.status >= 500:
            raise FailedRequestError(f"{answer.status}: {answer.text}")
        if answer.status >= 400:
            raise FreshetError(answer.text)

    try:
        run(f"PUT {_BANK}\n".encode() + orjson.dumps({"vectors": {"size": 2}}))
        yield run
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        shards.close()


def decoders(run: Callable[[bytes], None]) -> list[Decoder]:
    """Return a decoder per call, each of which gets mutated bodies."""

    def bodies(line: str) -> Callable[[bytes], None]:
        return lambda data: run(line.encode() + b"\n" + data)

    return [Decoder(f"store: {line.split('/', 2)[2][-26:]}", bodies(line), [orjson.dumps(body)], "json", 0.2, 16_000)
            for line, body in REQUESTS.items()]
