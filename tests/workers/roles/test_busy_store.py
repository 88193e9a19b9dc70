"""Both roles while the store is rate-limited: knowledge waits as long as it is told, ranking serves the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
import pytest

from schemas.settings import WatchdogSettings
from schemas.topics import DEAD_LETTERS, KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES, RANKING_REQUESTS, RECOMMENDATIONS
from tests.workers.fitted import DIM
from tests.workers.roles.test_roles import Stack, knowledge_request, ranking_request
from tests.workers.store.proxy import Fault, Proxy
from tests.workers.store.test_store import write_raw
from workers.kafka.lag import KNOWLEDGE_GROUP, lag
from workers.store.point import DamagedPoint, payload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WAIT_S = 4


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[tuple[Stack, Proxy]]:
    stack = Stack("embedded", tmp_path)
    proxy = Proxy(stack.settings.qdrant.url, stack.settings.qdrant.api_key)
    # The wait is longer than the watchdog's limit: a store that is busy is no standstill.
    stack.settings = replace(
        stack.settings, qdrant=replace(stack.settings.qdrant, url=proxy.url), watchdog=WatchdogSettings(stall_s=2.0))
    yield stack, proxy
    stack.close()
    proxy.close()


def progress(stack: Stack, role: str) -> dict:
    return orjson.loads((stack.run / f"{role}.json").read_bytes())


def test_a_rate_limited_store_is_waited_for(stack: tuple[Stack, Proxy]) -> None:
    stack, proxy = stack
    knowledge = stack.start("knowledge", wait=True)
    ranking = stack.start("ranking", wait=True)
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request("first")])
    stack.collect(KNOWLEDGE_UPDATES, lambda got: len(got) == 1)

    proxy.plan = lambda *_: Fault(429, {"Retry-After": str(WAIT_S)})
    users = [f"u{n}" for n in range(8)]
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request(user) for user in users])
    stack.wait(lambda: progress(stack, "knowledge")["waits_for"] == "store")
    asked, memory = len(proxy.seen), psutil.Process(knowledge.pid).memory_info().rss
    more = [f"v{n}" for n in range(2_000)]
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request(user) for user in more])
    stack.produce(RANKING_REQUESTS, [ranking_request("first", 1), ranking_request("u1", 1)])
    recommendations = stack.collect(RECOMMENDATIONS, lambda got: len(got) == 2)
    assert {(r.source, r.fallback) for r in recommendations} == {("reference", "store_unavailable")}
    time.sleep(2 * WAIT_S)  # it is the passing time that is tested
    assert knowledge.poll() is ranking.poll() is None
    assert progress(stack, "knowledge")["processed"] == 1
    assert psutil.Process(knowledge.pid).memory_info().rss - memory < 50e6
    # In 8 s and a bit: three tries of knowledge, three probes of ranking, and ranking's first read.
    assert len(proxy.seen) - asked <= 8

    proxy.plan = lambda *_: None
    stack.collect(KNOWLEDGE_UPDATES, lambda got: {u.user_id for u in got} == {"first", *users, *more})
    stack.wait(lambda: sum(lag(stack.settings.kafka, KNOWLEDGE_GROUP, [KNOWLEDGE_REQUESTS.name]).values()) == 0)
    stack.collect(DEAD_LETTERS, lambda got: not got, seconds=1)
    stack.wait(lambda: progress(stack, "ranking")["store_available"])
    stack.produce(RANKING_REQUESTS, [ranking_request("u1", 1)])
    stack.collect(RECOMMENDATIONS, lambda got: any(r.user_id == "u1" and r.source == "fused" for r in got))


def test_damaged_knowledge_is_generated_again_by_the_roles_alone(stack: tuple[Stack, Proxy]) -> None:
    stack, _ = stack
    stack.start("knowledge", wait=True)
    stack.start("ranking", wait=True)
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request("ann")])
    stack.collect(KNOWLEDGE_UPDATES, lambda got: len(got) == 1)
    held = stack.store.look(["ann"]).points["ann"]
    stack.store.discard([DamagedPoint("ann", 1, "made up")])
    write_raw(stack.store, "ann", payload(held) | {"count": "many"},
              {"knowledge": [[0.1] * DIM] * 3, "pooled": [0.1] * DIM})
    assert set(stack.store.look(["ann"]).damaged) == {"ann"}
    stack.produce(RANKING_REQUESTS, [ranking_request("ann", 1)])
    (first,) = stack.collect(RECOMMENDATIONS, lambda got: len(got) == 1)
    assert (first.source, first.fallback) == ("reference", "damaged_knowledge")
    updates = stack.collect(KNOWLEDGE_UPDATES, lambda got: len(got) == 2)
    assert [u.version for u in updates] == [1, 1]
    stack.produce(RANKING_REQUESTS, [ranking_request("ann", 1)])
    stack.collect(RECOMMENDATIONS, lambda got: any(r.source == "fused" and r.knowledge_version == 1 for r in got))
    stack.collect(DEAD_LETTERS, lambda got: not got, seconds=1)
