"""Every name on a server goes through `KafkaSettings.full`: topics, groups, transactional ids, collections.

Two Freshets on one cluster must share nothing. `tests/test_borders.py` searches the source for every call that gives a
server a name, and `tests/system/test_two_freshets.py` looks at what two running stacks leave there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from schemas.errors import SettingsError
from schemas.messages import ModelUpdate
from schemas.settings import KafkaSettings, QdrantSettings, Settings, load, to_environ
from schemas.topics import BEHAVIOUR_EVENTS, CHANGELOG, TOPICS
from streams.decisions.planner import Planner
from streams.service.app import GROUP, TABLE, build
from streams.service.cluster import Cluster
from streams.service.stage import SOURCES
from tests.streams.cases import CALIBRATION, item_vectors
from workers.demo.sampler import GROUPS
from workers.kafka.configuration import consumer
from workers.kafka.lag import GUARD_GROUP
from workers.roles.alignment.worker import GROUP as ALIGNMENT_GROUP
from workers.runtime.loop import StreamWorker
from workers.store.banks.bank import banks
from workers.store.items import ITEMS, QdrantItems
from workers.store.point import COLLECTION
from workers.store.qdrant import QdrantStore

KAFKA = KafkaSettings(bootstrap="127.0.0.1:9", prefix="shop-")


def test_no_two_prefixes_make_one_name():
    """`a-` + `b` and `a` + `-b` would be one name; no name ends with another, so none can be both."""
    groups = [GROUP, *GROUPS, GUARD_GROUP, ALIGNMENT_GROUP]
    for names in ([*TOPICS, CHANGELOG], list(dict.fromkeys(groups)), [COLLECTION, ITEMS]):
        assert [(one, other) for one in names for other in names if one != other and one.endswith(other)] == []


def test_a_name_is_prefixed_and_read_back():
    assert KAFKA.full("judgements") == "shop-judgements"
    assert KAFKA.plain("shop-judgements") == "judgements"
    assert KafkaSettings().full("judgements") == KafkaSettings().plain("judgements") == "judgements"


def test_roles_inherit_the_prefix():
    assert to_environ(load({"FRESHET_KAFKA_PREFIX": "shop-"}))["FRESHET_KAFKA_PREFIX"] == "shop-"


@pytest.mark.parametrize("prefix", ["shop/", "shop ", "ä", "x" * 101])
def test_a_prefix_that_no_server_would_take_is_refused(prefix: str):
    with pytest.raises(SettingsError, match=r"kafka\.prefix"):
        load({"FRESHET_KAFKA_PREFIX": prefix})


def test_streams_names_everything_with_the_prefix(tmp_path: Path):
    settings = Settings(home=tmp_path, kafka=KAFKA)
    app = build(settings, Planner(item_vectors(), CALIBRATION, settings), Cluster(KAFKA))
    assert app.conf.id == "shop-freshet-streams"  # the group, too
    assert app.batched_topics == {f"shop-{name}" for name in SOURCES}
    (table,) = app.tables.values()
    assert table.changelog_topic_name == f"shop-{CHANGELOG}"
    assert (app.changelog._name, app.changelog._topic) == (f"shop-{GROUP}-{TABLE}", f"shop-{CHANGELOG}")


def test_workers_name_their_topic_and_group_with_the_prefix(tmp_path: Path):
    settings = Settings(home=tmp_path, kafka=KAFKA)
    worker: StreamWorker[ModelUpdate] = StreamWorker(
        settings, "guard", GUARD_GROUP, BEHAVIOUR_EVENTS, lambda messages: [], batch=1)
    assert worker._source == "shop-behaviour-events"
    assert consumer(KAFKA, GUARD_GROUP)["group.id"] == "shop-freshet-guard"


def test_collections_have_the_prefix():
    settings = replace(Settings(), kafka=KAFKA, qdrant=QdrantSettings(url="http://127.0.0.1:9"))
    stores = [QdrantStore.at(settings, 4), QdrantItems.at(settings, 4)]
    assert [store._name for store in stores] == ["shop-user_knowledge", "shop-item_knowledge"]
    bank = banks(settings)("users", torch.eye(3))
    assert vars(bank)["collection"].startswith("shop-freshet_users_")
    for store in stores:
        store.close()
