"""States on disk and the cluster they were written with."""

from __future__ import annotations

from pathlib import Path

import pytest
import rocksdict
from faust.stores.rocksdb import Store

from schemas.errors import FreshetError
from streams.service.origin import EMBEDDED, Origin, confirm, read, settle, verdict, write

ONE, OTHER = "Some-kafka-cluster_id1", "Other-kafka-clusterid2"


@pytest.mark.parametrize(("kept", "found", "wanted"), [
    (Origin(ONE, "a"), Origin(ONE, "a"), "trust"),
    (Origin(ONE, ""), Origin(ONE, "a"), "trust"),  # a broker that tells no topic ids
    (Origin("", "a"), Origin(ONE, "a"), "trust"),
    (Origin(ONE, "a"), Origin(ONE, "b"), "keep"),  # the changelog was created again
    (Origin(ONE, "a"), Origin(ONE, None), "keep"),  # it was deleted
    (Origin(ONE, None), Origin(ONE, "a"), "keep"),
    (Origin(EMBEDDED, "a"), Origin(EMBEDDED, "b"), "keep"),  # its records were in memory: the states are all there is
    (None, Origin(ONE, "a"), "keep"),  # an older Freshet
    (Origin(EMBEDDED, "a"), Origin(ONE, None), "aside"),
    (Origin(ONE, "a"), Origin(EMBEDDED, None), "aside"),
    (Origin(ONE, "a"), Origin(OTHER, "a"), "aside"),
    (Origin(ONE, None), Origin(OTHER, None), "aside"),
    (Origin(ONE, "a"), Origin(ONE, "b", "shop-"), "aside"),  # another Freshet on the same cluster
    (Origin(ONE, "", "shop-"), Origin(ONE, "", "news-"), "aside"),
    (Origin(ONE, "a", "shop-"), Origin(ONE, "a", "shop-"), "trust"),
])
def test_what_happens_to_the_states(kept, found, wanted):
    assert verdict(kept, found) == wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """States of two partitions where Faust puts them."""
    for partition in range(2):
        store = open_store(tmp_path, partition)
        store.put(b"user", b"state")
        store.put(Store.offset_key, b"500")
        store.close()
    return tmp_path


def open_store(folder: Path, partition: int) -> rocksdict.Rdict:
    path = folder / "v1" / "tables" / f"user-state-{partition}.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    return rocksdict.Rdict(str(path), options=rocksdict.Options(raw_mode=True))


def content(folder: Path) -> list[dict[bytes, bytes]]:
    out = []
    for partition in range(2):
        store = open_store(folder, partition)
        out.append(dict(store.items()))
        store.close()
    return out


def test_states_of_the_same_cluster_keep_their_offsets(folder):
    write(folder, Origin(ONE, "a"))
    assert settle(folder, Origin(ONE, "a")) == "trust"
    assert content(folder) == [{b"user": b"state", Store.offset_key: b"500"}] * 2


def test_states_without_a_changelog_are_kept_and_their_offsets_are_not(folder):
    write(folder, Origin(EMBEDDED, "a"))
    assert settle(folder, Origin(EMBEDDED, "b")) == "keep"
    assert content(folder) == [{b"user": b"state"}] * 2
    assert read(folder) == Origin(EMBEDDED, "b")
    assert settle(folder, Origin(EMBEDDED, "b")) == "trust"


def test_states_of_another_cluster_are_put_aside_and_can_be_brought_back(folder, caplog):
    write(folder, Origin(EMBEDDED, "a"))
    assert settle(folder, Origin(ONE, None)) == "aside"
    assert read(folder) == Origin(ONE, None)
    assert not list(folder.glob("v*"))
    (aside,) = folder.glob("aside-*")
    assert str(aside) in caplog.text
    assert "come from the embedded broker" in caplog.text
    (aside / "v1").rename(folder / "v1")  # what the message says
    (folder / "origin.json").unlink()
    assert settle(folder, Origin(ONE, "b")) == "keep"
    assert content(folder) == [{b"user": b"state"}] * 2


def test_a_home_without_states_takes_any_cluster(tmp_path):
    write(tmp_path, Origin(OTHER, "z"))
    assert settle(tmp_path, Origin(ONE, None)) is None
    assert read(tmp_path) == Origin(ONE, None)


def test_a_cluster_that_changes_under_the_running_role_is_an_error(tmp_path):
    settle(tmp_path, Origin(ONE, None))
    confirm(tmp_path, Origin(ONE, "a"))  # created since
    confirm(tmp_path, Origin(ONE, "a"))
    for other in (Origin(ONE, "b"), Origin(OTHER, "a"), Origin(OTHER, None)):
        with pytest.raises(FreshetError, match="started again"):
            confirm(tmp_path, other)
    assert read(tmp_path) == Origin(ONE, "a")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"cluster_id": "a"}', b"\xff"])
def test_a_damaged_note_is_no_note(folder, data):
    (folder / "origin.json").write_bytes(data)
    assert read(folder) is None
    assert settle(folder, Origin(ONE, "a")) == "keep"
