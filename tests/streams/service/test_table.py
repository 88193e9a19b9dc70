"""Which users' states the table keeps decoded, over a real RocksDB."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rocksdict
from faust.stores.rocksdb import RocksDBOptions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.profile.state import UserState
from streams.service.changelog import LostError
from streams.service.outbox import Pair
from streams.service.table import BLOCK_CACHES, WRITE_BUFFERS, UserTable, store_options

CACHED = 3


class Writer:
    """Stands for Kafka: it takes everything, and then the partition may be lost."""

    partition = 0
    offset = 0
    lost = False

    async def write(self, pairs: list[Pair]) -> int:
        self.offset += len(pairs)
        return self.offset

    def check(self) -> None:
        if self.lost:
            raise LostError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[rocksdict.Rdict]:
    store = rocksdict.Rdict(str(tmp_path / "db"), rocksdict.Options(raw_mode=True))
    yield store
    store.close()


def table_on(store: rocksdict.Rdict) -> UserTable:
    faust: Any = SimpleNamespace(changelog_topic_name="changelog", data=SimpleNamespace(
        offset_key=b"offset", _db_for_partition=lambda partition: store))
    return UserTable(faust, SimpleNamespace(writer=lambda partition: None), cached=CACHED)  # type: ignore[arg-type]


def state(count: int) -> UserState:
    return UserState(count=count)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True), max_size=12), st.booleans())
def test_the_last_written_users_are_kept_and_no_state_is_lost(
    store: rocksdict.Rdict, batches: list[list[int]], saved: bool,
) -> None:
    table, writer, counts, order = table_on(store), Writer(), {}, []
    for number, batch in enumerate(batches, start=1):
        states = {f"u{user}": state(number) for user in batch}
        pairs = table.put(0, states)
        if saved:
            asyncio.run(table.save(writer, pairs))  # type: ignore[arg-type]
        counts |= dict.fromkeys(states, number)
        order = [user for user in order if user not in states] + list(states)
        assert [user for user in sorted(counts) if table.known(0, user)] == sorted(order[-CACHED:])
    assert {user: found.count for user, found in table.load(0, counts).items()} == counts


def test_what_was_written_just_before_the_partition_was_lost_is_left_to_recovery(store: rocksdict.Rdict) -> None:
    table, writer = table_on(store), Writer()
    asyncio.run(table.save(writer, table.put(0, {"ann": state(1)})))  # type: ignore[arg-type]
    writer.lost = True  # while the broker confirms: another process, or this one again, may have newer states by now
    with pytest.raises(LostError):
        asyncio.run(table.save(writer, table.put(0, {"ann": state(2)})))  # type: ignore[arg-type]
    table.clear()
    assert table.load(0, ["ann"])["ann"].count == 1
    assert store.get(b"offset") == b"1"  # from here on recovery reads the changelog


def test_a_reloaded_state_is_the_last_good_one(store: rocksdict.Rdict) -> None:
    table = table_on(store)
    table.put(0, {"ann": state(2)})
    table.load(0, ["ann"])["ann"].count = 7  # a step that failed half way
    assert table.reload(0, "ann")["ann"].count == 2
    assert table.reload(0, "bob") == {}


def memory(store: rocksdict.Rdict, name: str) -> int:
    return int(store.property_int_value(f"rocksdb.{name}"))


def test_a_process_with_all_partitions_keeps_its_stores_within_the_bound(tmp_path: Path) -> None:
    partitions = 4
    made = RocksDBOptions(**store_options(partitions))
    stores = [made.open(tmp_path / str(n)) for n in range(partitions)]
    most = 0
    for n in range(40):
        for store in stores:
            batch = rocksdict.WriteBatch(raw_mode=True)
            for key in range(1000):
                batch.put(b"%d" % (n * 1000 + key), b"%05d" % key * 400)  # 2 kB
            store.write(batch)
        most = max(most, sum(memory(store, "cur-size-all-mem-tables") for store in stores))
    assert 20 * 2**20 < most <= WRITE_BUFFERS  # 312 MB went through them
    for n in range(0, 40_000, 3):
        for store in stores:
            assert store.get(b"%d" % n) is not None
    assert sum(memory(store, "block-cache-usage") for store in stores) <= 1.1 * BLOCK_CACHES
    for store in stores:
        store.close()


def test_many_partitions_keep_buffers_that_can_be_worked_with() -> None:
    assert store_options(1000) == {"write_buffer_size": 4 * 2**20, "max_write_buffer_number": 2,
                                   "block_cache_size": 2**20}
