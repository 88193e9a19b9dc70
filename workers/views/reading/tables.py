"""The local tables behind the views: RocksDB in `console/` under the home, keyed by user and by item.

On disk, because there are many users. Of one user the tables hold a state of 3 to 6 kB, as streams wrote it, the newest
3 lists of some 600 bytes, 8 versions of knowledge of 250, 40 margins of 100 and 60 steps of 30: 12 kB at most. A
million users are 12 GB, a third of that compressed; in a process's memory they would be more than twice as much. The
process itself takes 64 MB of write buffers and 64 MB of cache, however many users there are.

They hold nothing that the topics do not: the folder is emptied at each start and filled from the topics, so a million
users take minutes. That is simpler and safer than to go on from what an earlier run has left, and needs no offsets, no
format, no backup. Nothing is synced to the disk, for the same reason.

Every instance reads all partitions, so each can answer for any user, and instances are added behind any load balancer.
The alternative, an owner per partition and requests passed on, would save disk (a million users need 4 GB) and cost
each request a hop, and each rebalance a time in which nobody answers.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import rocksdict

from workers.views.reading.records import KeptList, KeptMargin, KeptRefresh, Step

LISTS, REFRESHES, MARGINS, KEPT_STEPS = 3, 8, 40, 60  # kept of a user
# Kinds of rows: the first byte of a key.
STATE, STEPS, SHOWN, MADE, JUDGED, LETTER, ITEM, ROW, ENTRY = (bytes([kind]) for kind in b"SPLRMDTNC")
OF_USER = (STATE, STEPS, SHOWN, MADE, JUDGED)
_BUFFER, _CACHE = 32 * 2**20, 64 * 2**20
_TIME = struct.Struct(">d")
_NUMBER = struct.Struct(">Q")


class KeptItemRow(msgspec.Struct, array_like=True):
    """An item of the model version in use; `row` is its number there."""

    row: int
    title: str
    text: str
    written: str


class KeptEntry(msgspec.Struct, array_like=True):
    """An item as the topic `catalogue` has it."""

    title: str
    text: str
    attributes: dict[str, Any]
    available: bool


_entries = msgspec.msgpack.Decoder(KeptEntry)
_lists = msgspec.msgpack.Decoder(list[KeptList])
_refreshes = msgspec.msgpack.Decoder(dict[int, KeptRefresh])
_steps = msgspec.msgpack.Decoder(list[Step])
_margins = msgspec.msgpack.Decoder(list[tuple[float, KeptMargin]])
_items = msgspec.msgpack.Decoder(KeptItemRow)
_encode = msgspec.msgpack.Encoder().encode


def key_of(text: str) -> bytes:
    """Return an id as bytes; also one that is no valid text."""
    return text.encode("utf-8", "surrogatepass")


class Tables:
    """One writer, any number of readers.

    Args:
        folder: emptied first.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)  # a mount point can be emptied, not removed
        self._folder = folder
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(rocksdict.Cache(_CACHE))
        blocks.set_bloom_filter(10, False)  # half of the reads are for users who have no row of a kind
        blocks.set_cache_index_and_filter_blocks(True)
        options = rocksdict.Options(raw_mode=True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_size(_BUFFER)
        options.set_max_write_buffer_number(2)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        options.set_max_open_files(256)
        options.set_keep_log_file_num(1)
        self._db = rocksdict.Rdict(str(folder), options)
        no_log = rocksdict.WriteOptions()
        no_log.disable_wal = True
        self._db.set_write_options(no_log)

    def close(self) -> None:
        """Close and remove them."""
        self._db.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def read(self, kind: bytes, key: bytes) -> bytes | None:
        """Return a row."""
        return self._db.get(kind + key)

    def read_all(self, kind: bytes, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return those rows that are there."""
        wanted = list(keys)
        found = self._db.get([kind + key for key in wanted]) if wanted else []
        return {key: value for key, value in zip(wanted, found, strict=True) if value is not None}

    def write(self, rows: Iterable[tuple[bytes, bytes, bytes | None]]) -> None:
        """Write (kind, key, value); None removes the row."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for kind, key, value in rows:
            if value is None:
                batch.delete(kind + key)
            else:
                batch.put(kind + key, value)
        if not batch.is_empty():
            self._db.write(batch)

    def rows(self, kind: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of all rows of a kind."""
        for key, value in self._db.items(from_key=kind):
            if key[:1] != kind:
                return
            yield key[1:], value

    def clear(self, kind: bytes) -> None:
        """Remove all rows of a kind."""
        self._db.delete_range(kind, bytes([kind[0] + 1]))


def pack_state(at: float, state: bytes) -> bytes:
    """Return the row of a state: when the broker took it, seconds, and the changelog's bytes."""
    return _TIME.pack(at) + state


def unpack_state(row: bytes) -> tuple[float, bytes]:
    """Return what `pack_state` was given."""
    return _TIME.unpack_from(row)[0], row[_TIME.size:]


def pack_number(number: int) -> bytes:
    """Return a key that sorts as the number does."""
    return _NUMBER.pack(number)


def with_lists(row: bytes | None, new: Iterable[KeptList]) -> bytes:
    """Return the row of a user's lists with new ones; oldest first.

    A list that shows the same with the same knowledge takes the place of the one before: the list that a reader wants
    to compare with is the last one that was different.
    """
    kept = _lists.decode(row) if row else []
    for one in new:
        one.since_count = one.count
        if kept and kept[-1].shows == one.shows and kept[-1].knowledge_version == one.knowledge_version:
            one.since_count = min(one.count, kept.pop().since_count)
        kept.append(one)
    return _encode(kept[-LISTS:])


def with_refreshes(row: bytes | None, new: Iterable[tuple[int, KeptRefresh]]) -> bytes:
    """Return the row of a user's refreshes with new parts: (version, what asked for it or made it)."""
    kept = _refreshes.decode(row) if row else {}
    for version, part in new:
        held = kept.setdefault(version, KeptRefresh())
        held.asked, held.made = part.asked or held.asked, part.made or held.made
    return _encode({version: kept[version] for version in sorted(kept)[-REFRESHES:]})


def refreshes_after(row: bytes | None, at: float) -> bytes | None:
    """Return what a row of refreshes has from after `at`, wall-clock seconds; None = nothing."""
    kept = {}
    for version, one in (_refreshes.decode(row) if row else {}).items():
        asked = one.asked if one.asked is not None and one.asked.requested_at > at else None
        made = one.made if one.made is not None and one.made.generated_at > at else None
        if asked or made:
            kept[version] = KeptRefresh(asked, made)
    return _encode(kept) if kept else None


def with_margins(row: bytes | None, new: Iterable[tuple[float, KeptMargin]]) -> bytes:
    """Return the row of a user's margins with new ones (judged at, margin); a margin that is sent again counts once."""
    kept = {(one.event_id, one.count): (at, one) for at, one in (_margins.decode(row) if row else [])}
    kept |= {(one.event_id, one.count): (at, one) for at, one in new}
    return _encode(sorted(kept.values(), key=lambda pair: pair[1].count)[-MARGINS:])


def with_steps(row: bytes | None, new: Iterable[Step]) -> bytes:
    """Return the row of a user's steps with new ones; one per event."""
    kept = {one.count: one for one in (*(_steps.decode(row) if row else ()), *new)}
    return _encode([kept[count] for count in sorted(kept)[-KEPT_STEPS:]])


def steps_in(row: bytes | None) -> list[Step]:
    """Return a user's steps, oldest first."""
    return _steps.decode(row) if row else []


def lists_in(row: bytes | None) -> list[KeptList]:
    """Return a user's lists, oldest first."""
    return _lists.decode(row) if row else []


def refreshes_in(row: bytes | None) -> dict[int, KeptRefresh]:
    """Return a user's refreshes by version, oldest first."""
    return _refreshes.decode(row) if row else {}


def margins_in(row: bytes | None) -> list[tuple[float, KeptMargin]]:
    """Return a user's margins, oldest first, with when they were judged."""
    return _margins.decode(row) if row else []


def item_row(row: int, title: str, text: str, written: str) -> bytes:
    """Return the row of an item."""
    return _encode(KeptItemRow(row, title, text, written))


def entry_row(entry: KeptEntry) -> bytes:
    """Return the row of an entry of the catalogue."""
    return _encode(entry)


def entry_in(row: bytes | None) -> KeptEntry | None:
    """Return an entry of the catalogue."""
    return _entries.decode(row) if row else None


def item_in(row: bytes | None) -> KeptItemRow | None:
    """Return an item."""
    return _items.decode(row) if row else None
