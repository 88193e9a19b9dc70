"""The same events give the same knowledge and the same recommendations on one machine and on real servers.

What depends on chance is taken out: knowledge is made once, of the same two events; all other events come when it is
there; the recommendation compared comes when all judgements are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.settings import KafkaSettings, QdrantSettings, RefreshSettings, Settings, to_environ
from tests.system.stack import Stack
from tests.workers.brokers import kill_broker, needs_kafka, start_broker
from tests.workers.fitted import DIM, ITEMS, publish, settings_in
from workers.home.store_key import kept_key
from workers.store.qdrant import QdrantStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.kafka, needs_kafka]
# Together no more events than the tiny model reads: of more, a batch's size decides which are judged.
USERS, FIRST, MORE, BASE = 8, 2, 6, 1_700_000_000


def events(user: int, numbers: range) -> list[dict[str, Any]]:
    return [{"user_id": f"u{user}", "item_id": ITEMS[(7 * user + 3 * n + n // 5) % len(ITEMS)],
             "event_time": BASE + 60 * n, "event_id": f"{user}-{n}"} for n in numbers]


def play(stack: Stack) -> dict[str, tuple[Any, ...]]:
    """Send the events in three steps; return per user what was recommended last, and the knowledge."""
    def known() -> bool:
        return len({update["user_id"] for update in stack.records("knowledge-updates")}) == USERS

    def covered(count: int) -> bool:
        return sorted(stack.answered().values()) == [count] * USERS

    def judged() -> int:
        return sum(len(judgement["margins"]) for judgement in stack.records("judgements"))

    total = FIRST + MORE + 1
    stack.produce([event for user in range(USERS) for event in events(user, range(FIRST))])
    stack.until(lambda: known() and covered(FIRST), 90)
    # Streams knows of the knowledge when it has had the users ranked again with it.
    stack.until(lambda: len({offer["user_id"] for offer in stack.records("recommendations")
                             if offer["source"] == "fused"}) == USERS)
    stack.produce([event for user in range(USERS) for event in events(user, range(FIRST, total - 1))])
    stack.until(lambda: covered(total - 1) and judged() == USERS * MORE, 90)
    stack.until(lambda: all(state.judged_count == total - 1 for state in stack.states().values()))
    stack.produce([event for user in range(USERS) for event in events(user, range(total - 1, total))])
    stack.until(lambda: covered(total))
    assert stack.running is not None
    url = stack.running.qdrant_url
    store = QdrantStore(url, DIM, QdrantSettings(url=url, api_key=kept_key(stack.home, url)))
    points = store.read([f"u{n}" for n in range(USERS)])
    last = {}
    for offer in stack.records("recommendations"):
        if offer["count"] == total:
            last[offer["user_id"]] = offer
    return {user: (last[user]["source"], [item["item_id"] for item in last[user]["items"]], last[user]["reference"],
                   round(last[user]["epsilon"], 5), points[user].version, points[user].history_hash,
                   points[user].vectors) for user in last}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = settings_in(tmp_path / "home")
    publish(settings, "m1")
    return replace(settings, refresh=RefreshSettings(policy="once"), kafka=KafkaSettings())


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[str]:
    broker = start_broker("kafka", tmp_path)
    yield broker.bootstrap
    kill_broker(broker)


def test_one_machine_and_real_servers_answer_alike(settings: Settings, kafka: str, tmp_path: Path) -> None:
    outcomes = []
    for bootstrap in ("", kafka):
        home = tmp_path / ("servers" if bootstrap else "machine")
        home.mkdir()
        (home / "models").symlink_to(settings.home / "models")
        environ = {name: value for name, value in to_environ(settings).items() if name != "FRESHET_HOME"}
        with Stack(home, bootstrap, **environ) as stack:
            outcomes.append(play(stack))
    embedded, servers = outcomes
    assert embedded.keys() == servers.keys()
    for user, (*answer, vectors) in embedded.items():
        *other, others = servers[user]
        assert answer == other, user
        assert np.allclose(vectors, others, atol=1e-3), user
