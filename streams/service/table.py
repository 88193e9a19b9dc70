"""The Faust table of user states: decoded states in memory, bytes in RocksDB and in the changelog topic."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import rocksdict

from streams.profile.state import UserState, dumps, loads
from streams.service.changelog import Changelog, PartitionWriter
from streams.service.outbox import Pair

# A decoded state takes some 20 kB, so this is 300 MB at worst; others are read from RocksDB, at 30 µs.
CACHED_USERS = 16_384
# What RocksDB may take in a process that owns every partition, in bytes. Faust's defaults are three write buffers of
# 64 MiB and a cache of 2 GiB for each partition, so memory grows for hours before it reaches its bound.
WRITE_BUFFERS = 128 * 2**20
BLOCK_CACHES = 64 * 2**20
BUFFERS = 2  # of each partition: one is written while the other goes to disk
SMALLEST_BUFFER = 4 * 2**20  # below this, files become so many that merging them costs more than the memory is worth
SMALLEST_CACHE = 2**20
_GONE = b""  # in place of a state's bytes: the user was erased, and that is not on disk yet


def store_options(partitions: int) -> dict[str, int]:
    """Return RocksDB's options for each of `partitions` stores, so that together they keep within the bounds above.

    With more than 16 partitions the smallest buffers apply: 8 MiB of them and 1 MiB of cache a partition.
    """
    return {"write_buffer_size": max(SMALLEST_BUFFER, WRITE_BUFFERS // BUFFERS // partitions),
            "max_write_buffer_number": BUFFERS,
            "block_cache_size": max(SMALLEST_CACHE, BLOCK_CACHES // partitions)}


class UserTable:
    """Reads and writes user states of the partitions this process owns.

    Faust's table places and recovers partitions. Its per-key write costs 50 µs and
    tells RocksDB the changelog offset once per key; here a batch's states are one changelog transaction, then one
    atomic RocksDB write together with the offset. So RocksDB never holds what the changelog does not: what a former
    owner could not commit is on no disk, and what it committed just before it lost the partition is read again.

    Args:
        table: the Faust table, its store RocksDB.
        changelog: writes the changelog, for as long as this process owns the partition.
        source_life: returns the number of the log of events in a partition, 0 = not known. States from another log
            are taken without its offsets.
        cached: users kept decoded.
    """

    def __init__(self, table: Any, changelog: Changelog, source_life: Callable[[int], int] = lambda partition: 0,
                 cached: int = CACHED_USERS) -> None:
        self._table = table
        self._changelog = changelog
        self._source_life = source_life
        self._limit = cached
        # By hand, for every batch goes through it. A get and a put of one of 20,000 users in random order, and in turn:
        # OrderedDict 1.0 and 0.8 µs, cachetools' LRUCache 1.8 and 2.2 µs, a dict whose first key is dropped 1.0 and
        # 6.4 µs (it looks for its first key among the dropped ones).
        self._cache: OrderedDict[tuple[int, str], UserState] = OrderedDict()
        self._unsaved: dict[tuple[int, str], bytes] = {}

    def writer(self, partition: int) -> PartitionWriter:
        """Return what `save` needs, and what knows whether the partition is still this process's.

        Raises:
            LostError: it is not.
        """
        return self._changelog.writer(partition)

    def known(self, partition: int, user: str) -> bool:
        """Tell whether the user is in memory, so known to belong to the partition."""
        return (partition, user) in self._cache

    def load(self, partition: int, users: Iterable[str]) -> dict[str, UserState]:
        """Return the states of those of `users` who have one.

        Raises:
            FreshetError: stored bytes are no state.
        """
        states: dict[str, UserState] = {}
        for user in users:
            state = self._cache.get((partition, user)) or self._read(partition, user)
            if state is not None:
                states[user] = state
        return states

    def reload(self, partition: int, user: str) -> dict[str, UserState]:
        """Return the user's last good state, if any: a step that failed may have left the one in memory half changed.

        Raises:
            FreshetError: stored bytes are no state.
        """
        self._cache.pop((partition, user), None)
        return self.load(partition, [user])

    def put(self, partition: int, states: Mapping[str, UserState]) -> list[Pair]:
        """Take new states: `load` returns them from now on. `save` must get what this returns, in the same order."""
        pairs: list[Pair] = []
        cache, unsaved, life = self._cache, self._unsaved, self._source_life(partition)
        for user, state in states.items():
            at = (partition, user)
            state.source_life = life or state.source_life
            cache[at] = state
            cache.move_to_end(at)
            data = unsaved[at] = dumps(state)
            pairs.append((_key(user), data, []))
        while len(cache) > self._limit:
            cache.popitem(last=False)
        return pairs

    def erase(self, partition: int, users: Iterable[str]) -> tuple[list[Pair], int]:
        """Erase states: `load` finds none from now on. `save` must get the tombstones that this returns.

        Returns:
            A tombstone per user, also of those without a state; and how many had one.
        """
        pairs: list[Pair] = []
        held = 0
        for user in users:
            at = (partition, user)
            held += at in self._cache or bool(self._stored(partition, user))
            self._cache.pop(at, None)
            self._unsaved[at] = _GONE
            pairs.append((_key(user), None, []))
        return pairs, held

    async def save(self, writer: PartitionWriter, pairs: list[Pair]) -> None:
        """Make states durable: the changelog first, then RocksDB.

        Raises:
            LostError: the partition is not this process's any more.
        """
        if not pairs:
            return
        partition = writer.partition
        offset = await writer.write(pairs)
        writer.check()  # the next owner may be this process again, with newer states in RocksDB
        store = self._table.data
        database = store._db_for_partition(partition)
        batch = rocksdict.WriteBatch(raw_mode=True)
        gone = []
        for key, value, _ in pairs:
            if value is None:
                batch.delete(key)
                gone.append(key or b"")
            else:
                batch.put(key, value)
        batch.put(store.offset_key, str(offset).encode())
        database.write(batch)
        for key, value, _ in pairs:
            at = (partition, _user(key))
            if self._unsaved.get(at) is (_GONE if value is None else value):  # not changed again meanwhile
                del self._unsaved[at]
        if gone:  # else the bytes stay in RocksDB's files, for as long as nothing near them changes
            await asyncio.to_thread(_rewrite, database, gone)

    def clear(self) -> None:
        """Forget what is in memory: partitions are changing hands."""
        self._cache.clear()
        self._unsaved.clear()

    def _stored(self, partition: int, user: str) -> bytes | None:
        data = self._unsaved.get((partition, user))
        return self._table.data._db_for_partition(partition).get(_key(user)) if data is None else data

    def _read(self, partition: int, user: str) -> UserState | None:
        data = self._stored(partition, user)
        if not data:  # none, or erased and not saved yet
            return None
        state, life = loads(data), self._source_life(partition)
        if state.source_life and life and state.source_life != life:
            state.offset = -1  # counts in a log that is gone: an event with a smaller offset need not be an old one
        return state


def _rewrite(database: Any, keys: Iterable[bytes]) -> None:
    """Have RocksDB rewrite the files that hold these keys, which are deleted."""
    database.flush()
    for key in keys:
        database.compact_range(key, key)


def _user(key: bytes | None) -> str:
    return (key or b"").decode("utf-8", "surrogatepass")


def _key(user: str) -> bytes:
    return user.encode("utf-8", "surrogatepass")
