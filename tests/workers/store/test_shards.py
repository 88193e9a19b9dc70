"""Collections of several Freshets in one embedded store."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.workers.store.test_store import DIM, point
from workers.store.embedded.server import _BANK
from workers.store.embedded.shards import Shards
from workers.store.point import payload, point_id, vectors


def put(shards: Shards, name: str, user: str) -> None:
    shard, one = shards.find(name), point(user)
    assert shard is not None
    shard.upsert([(point_id(user), vectors(one), payload(one))], one.version)


def users(shards: Shards, name: str) -> set[str]:
    shard = shards.find(name)
    assert shard is not None
    found = shard.retrieve([point_id(user) for user in ("ann", "bob", "eve")], True, False)
    return {fields["user"] if "user" in fields else fields["user_id"] for _, fields, _ in found}


def test_prefixes_share_nothing_and_survive_a_restart(tmp_path: Path):
    names = {"user_knowledge": "ann", "shop-user_knowledge": "bob", "..user_knowledge": "eve"}
    for _ in range(2):
        shards = Shards(tmp_path / "store")
        for name, user in names.items():
            shards.create(name, DIM)
            put(shards, name, user)
        assert [users(shards, name) for name in names] == [{user} for user in names.values()]
        absent = shards.find("other-user_knowledge")
        assert absent is not None
        assert absent.dim is None
        shards.create("shop-item_knowledge", 7)
        assert [shard.dim for shard in shards].count(7) == 1
        shards.close()
    assert sorted(path.name for path in (tmp_path / "store" / ".prefixed").iterdir()) == ["+..", "+shop-"]
    assert {path.name for path in tmp_path.iterdir()} == {"store"}, "a prefix leads to no other folder"


@pytest.mark.parametrize("name", ["knowledge", "a/user_knowledge", "../user_knowledge", "ä-user_knowledge", "x" * 101
                                  + "user_knowledge"])
def test_other_names_are_no_collections(tmp_path: Path, name: str):
    assert Shards(tmp_path).find(name) is None
    with pytest.raises(ValueError, match="no collection"):
        Shards(tmp_path).create(name, DIM)


def test_a_bank_is_told_from_a_collection_whatever_the_prefix():
    names = {"freshet_users_0123456789abcdef": True, "shop-freshet_users_0123456789abcdef": True,
             "freshet_user_knowledge": False, "user_knowledge": False, "freshet_item_knowledge": False}
    assert {name: bool(re.fullmatch(_BANK, name)) for name in names} == names
