"""The Faust table of user states: decoded states in memory, bytes in RocksDB and in the changelog topic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import rocksdict

from streams.outbox import Outbox, Pair
from streams.state import UserState, dumps, loads

# A decoded state takes some 20 kB, so this is 300 MB at worst; beyond that a state is read anew, at 30 µs.
CACHED_USERS = 16_384


class UserTable:
    """Reads and writes user states of the partitions this process owns.

    Faust's table is used for what it is good at, placing and recovering partitions. Its per-key write costs 50 µs and
    tells RocksDB the changelog offset once per key; here a batch's states are one changelog batch, then one atomic
    RocksDB write together with the offset. So RocksDB never holds what the changelog does not.

    Args:
        table: the Faust table, its store RocksDB.
        outbox: sends the changelog.
        cached: users kept decoded.
    """

    def __init__(self, table: Any, outbox: Outbox, cached: int = CACHED_USERS) -> None:
        self._table = table
        self._outbox = outbox
        self._limit = cached
        self._cache: dict[tuple[int, str], UserState] = {}

    def known(self, partition: int, user: str) -> bool:
        """Tell whether the user is in memory, so known to belong to the partition."""
        return (partition, user) in self._cache

    def load(self, partition: int, users: Iterable[str]) -> dict[str, UserState]:
        """Return the states of those of `users` who have one.

        Raises:
            FreshetError: stored bytes are no state.
        """
        states: dict[str, UserState] = {}
        db = self._table.data._db_for_partition(partition)
        for user in users:
            state = self._cache.get((partition, user))
            if state is None:
                data = db.get(_key(user))
                if data is None:
                    continue
                state = loads(data)
            states[user] = state
        return states

    async def save(self, partition: int, states: Mapping[str, UserState]) -> None:
        """Make states durable: the changelog first, then RocksDB."""
        if not states:
            return
        pairs: list[Pair] = [(_key(user), dumps(state), []) for user, state in states.items()]
        offset = await self._outbox.send(self._table.changelog_topic_name, partition, pairs)
        store = self._table.data
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value, _ in pairs:
            batch.put(key, value)
        batch.put(store.offset_key, str(offset).encode())
        store._db_for_partition(partition).write(batch)
        cache = self._cache
        for user, state in states.items():
            cache.pop((partition, user), None)  # to the young end
            cache[partition, user] = state
        while len(cache) > self._limit:
            del cache[next(iter(cache))]

    def forget(self, partition: int, users: Iterable[str]) -> None:
        """Drop decoded states, to be read anew: a fold that failed may have left them half changed."""
        for user in users:
            self._cache.pop((partition, user), None)

    def clear(self) -> None:
        """Drop all decoded states: partitions are changing hands."""
        self._cache.clear()


def _key(user: str) -> bytes:
    return user.encode("utf-8", "surrogatepass")
