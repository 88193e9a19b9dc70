"""Which users' states the table keeps decoded, over a real RocksDB."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rocksdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.profile.state import UserState
from streams.service.outbox import Pair
from streams.service.table import UserTable

CACHED = 3


class Changelog:
    """Stands for Kafka: it takes everything."""

    offset = 0

    async def send(self, topic: str, partition: int, pairs: list[Pair]) -> int:
        self.offset += len(pairs)
        return self.offset


@pytest.fixture
def store(tmp_path: Path) -> Iterator[rocksdict.Rdict]:
    store = rocksdict.Rdict(str(tmp_path / "db"), rocksdict.Options(raw_mode=True))
    yield store
    store.close()


def table_on(store: rocksdict.Rdict) -> UserTable:
    faust: Any = SimpleNamespace(changelog_topic_name="changelog", data=SimpleNamespace(
        offset_key=b"offset", _db_for_partition=lambda partition: store))
    return UserTable(faust, Changelog(), cached=CACHED)  # type: ignore[arg-type]


def state(count: int) -> UserState:
    return UserState(count=count)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True), max_size=12), st.booleans())
def test_the_last_written_users_are_kept_and_no_state_is_lost(
    store: rocksdict.Rdict, batches: list[list[int]], saved: bool,
) -> None:
    table, counts, order = table_on(store), {}, []
    for number, batch in enumerate(batches, start=1):
        states = {f"u{user}": state(number) for user in batch}
        pairs = table.put(0, states)
        if saved:
            asyncio.run(table.save(0, pairs))
        counts |= dict.fromkeys(states, number)
        order = [user for user in order if user not in states] + list(states)
        assert [user for user in sorted(counts) if table.known(0, user)] == sorted(order[-CACHED:])
    assert {user: found.count for user, found in table.load(0, counts).items()} == counts


def test_a_reloaded_state_is_the_last_good_one(store: rocksdict.Rdict) -> None:
    table = table_on(store)
    table.put(0, {"ann": state(2)})
    table.load(0, ["ann"])["ann"].count = 7  # a step that failed half way
    assert table.reload(0, "ann")["ann"].count == 2
    assert table.reload(0, "bob") == {}
