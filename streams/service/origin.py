"""Whose states are on disk: which cluster and changelog they were written with, and what to do when these are others.

RocksDB keeps, with the states, the changelog offset up to which it holds them. In another changelog that offset means
nothing: recovery would skip what is before it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import rocksdict
from faust.stores.rocksdb import Store
from faust.types import TP

from schemas.errors import FreshetError
from schemas.files import write_whole

log = logging.getLogger("freshet.streams")

# The embedded broker has the same id at every start, and nothing else has it.
EMBEDDED = "tansu_cluster"
_FILE = "origin.json"

# What to do with the states on disk: take them with their offsets, take them without, put them aside.
Verdict = Literal["trust", "keep", "aside"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A cluster and its changelog of user states.

    Args:
        cluster_id: "" = not known.
        changelog_id: topic id of the changelog; "" = not known, None = there is no such topic.
        prefix: of all names there: another one is another Freshet.
    """

    cluster_id: str
    changelog_id: str | None
    prefix: str = ""


def verdict(kept: Origin | None, found: Origin) -> Verdict:
    """Return what to do with states on disk. Pure.

    Args:
        kept: where they came from, None = not known (an older Freshet wrote them, or they were moved here).
        found: what is there now.
    """
    if kept is None:
        return "keep"
    if kept.cluster_id and found.cluster_id and kept.cluster_id != found.cluster_id:
        return "aside"
    if kept.prefix != found.prefix:
        return "aside"
    if kept.changelog_id == found.changelog_id or "" in (kept.changelog_id, found.changelog_id):
        return "trust"
    return "keep"


def settle(folder: Path, found: Origin) -> Verdict | None:
    """Make the states under `folder` fit the cluster, note the cluster beside them, and say what was done.

    Call it before anything opens them.

    Returns:
        What was done with the states, None if there were none.
    """
    stores = sorted(folder.glob("v*/**/*.db"))
    kept = read(folder)
    done: Verdict | None = verdict(kept, found) if stores else None
    if kept is not None and done == "aside":
        aside = folder / f"aside-{re.sub('[^A-Za-z0-9_-]+', '_', kept.cluster_id)}-{int(time.time())}"
        aside.mkdir()
        for part in sorted(folder.glob("v*")):
            part.rename(aside / part.name)
        log.error(
            "the user states in %s come from %s, this is %s: they are put aside in %s, and states are rebuilt from "
            "this cluster's changelog. If they are to be used here, because the old cluster is lost: stop streams, "
            "move what is in that folder to %s, remove %s there and start again. Otherwise delete the folder", folder,
            _name(kept), _name(found), aside, folder, _FILE)
    elif done == "keep":
        for store in stores:
            _forget_offset(store)
        if kept is not None:
            log.error("the changelog of user states is another one than when the states in %s were written: they are "
                      "kept, and what the changelog holds is read from its start", folder)
    write(folder, found)
    return done


def confirm(folder: Path, found: Origin) -> None:
    """Note the changelog that was created since `settle`.

    Raises:
        FreshetError: it is another cluster or changelog than at the start: states and offsets in memory are not its.
    """
    kept = read(folder)
    created = kept is not None and kept.changelog_id is None and kept.cluster_id == found.cluster_id
    if kept is not None and verdict(kept, found) != "trust" and not created:
        raise FreshetError(f"{_name(found)} answers with another changelog of user states than "
                           f"{_name(kept)} did at the start; streams must be started again")
    write(folder, found)


def lower_offsets(app: Any, ends: Mapping[TP, int]) -> None:
    """Lower the offsets up to which RocksDB holds a changelog where that ends before them: it has lost records.

    The states on disk are newer than such a changelog, and kept. But what others write to it from now on has offsets
    that RocksDB would claim to hold.

    Args:
        app: the Faust app, its tables' partitions assigned.
        ends: end offsets of changelog partitions.
    """
    offsets = app.tables.recovery.active_offsets
    for tp, end in ends.items():
        table = app.tables._changelogs.get(tp.topic)
        kept = table.persisted_offset(tp) if table is not None else None
        if kept is not None and kept >= end:
            log.error("%s[%d] ends at offset %d, but the states on disk hold it up to %d: the broker lost records. The "
                      "states are kept. They are on this disk only until their users act again: back it up", tp.topic,
                      tp.partition, end, kept)
            store = table.data
            if end:
                store.set_persisted_offset(tp, end - 1)
            else:
                store._db_for_partition(tp.partition).delete(store.offset_key)
            offsets[tp] = end - 1 if end else None


def read(folder: Path) -> Origin | None:
    """Return where the states under `folder` come from, None if that is not known."""
    try:
        fields = orjson.loads((folder / _FILE).read_bytes())
        return Origin(str(fields["cluster_id"]), fields["changelog_id"], str(fields.get("prefix", "")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(folder: Path, origin: Origin) -> None:
    """Note where the states under `folder` come from."""
    folder.mkdir(parents=True, exist_ok=True)
    if read(folder) != origin:
        write_whole(folder / _FILE, orjson.dumps(
            {"cluster_id": origin.cluster_id, "changelog_id": origin.changelog_id, "prefix": origin.prefix}))


def _forget_offset(store: Path) -> None:
    with_states = rocksdict.Rdict(str(store), options=rocksdict.Options(raw_mode=True))
    try:
        if with_states.get(Store.offset_key) is not None:
            with_states.delete(Store.offset_key)
    finally:
        with_states.close()


def _name(origin: Origin) -> str:
    server = ("the embedded broker" if origin.cluster_id == EMBEDDED else
              f"cluster {origin.cluster_id or '(without id)'}")
    return f"{server} with prefix {origin.prefix!r}" if origin.prefix else server
