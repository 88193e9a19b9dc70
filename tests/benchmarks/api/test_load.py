from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from aiohttp import web

from benchmarks.api.load import MIX, Ask, ask_all, quantile, schedule
from benchmarks.api.run import figures, table


def test_requests_are_due_at_the_rate_and_of_the_mix():
    asks = schedule(200.0, 50.0, ["a b", "c"], ["i"])
    assert len(asks) == pytest.approx(10_000, rel=0.05)
    assert asks == sorted(asks, key=lambda one: one.at)
    kinds = Counter(one.kind for one in asks)
    assert {kind: round(100 * number / len(asks)) for kind, number in kinds.items()} == pytest.approx(dict(MIX), abs=2)
    assert {one.path for one in asks if one.kind == "state"} == {"/v1/users/a%20b/state", "/v1/users/c/state"}
    assert schedule(200.0, 5.0, ["a"], ["i"]) == schedule(200.0, 5.0, ["a"], ["i"])


def test_a_server_that_stands_still_is_late_for_all_that_were_due():
    """A closed loop would count one late answer."""
    async def slow(request: web.Request) -> web.Response:
        if "first" in request.path:
            time.sleep(0.4)
        tagged = request.headers.get("If-None-Match") == '"t"'
        return web.Response(status=304 if tagged else 200, headers={"ETag": '"t"'})

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{rest:.*}", slow)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        asks = [Ask(0.0, "state", "/first")] + [Ask(0.05 * n, "item", "/x") for n in range(1, 6)]
        found = await ask_all(f"http://127.0.0.1:{port}", asks)
        late = found.seconds["item"]
        assert len(late) == 5
        assert min(late) > 0.1
        assert found.status.total() == 6
        again = await ask_all(f"http://127.0.0.1:{port}", [Ask(0.0, "item", "/x"), Ask(0.2, "item", "/x")])
        assert again.status == {200: 1, 304: 1}
        await runner.cleanup()
        gone = await ask_all(f"http://127.0.0.1:{port}", [Ask(0.0, "item", "/x")])
        assert gone.status == {0: 1}

    asyncio.run(run())


def test_figures_are_of_all_answers():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(1000)), 0.99) == 990

    from benchmarks.api.load import LoadAnswers

    found = LoadAnswers()
    for n in range(200):
        found.add("state" if n % 2 else "item", 200, n / 1000)
    result = figures(found, 200.0, 1.0, 3, 10.0) | {
        "console_cpu": 0.1, "console_rss_mb": 90, "console_waits": 0.02, "load": 1.5}
    assert (result["all"]["p99"], result["kinds"]["item"]["most"], result["status"]) == (198.0, 198.0, {"200": 200})
    assert "| all | 200 |" in table(result)
