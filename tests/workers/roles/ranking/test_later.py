"""Items that come later, from the topic `catalogue` into the lists of a ranking model."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.serving.ranking_model import RankingModel
from models.serving.requests import RankBatch
from schemas.artifacts import Artifact, Card, Registry, write_card
from schemas.catalogue.item import CatalogueItem
from schemas.catalogue.update import Alike, ItemUpdate, about
from schemas.codec import encode
from schemas.errors import StoreUnavailableError
from schemas.settings import Settings
from schemas.topics import CATALOGUE, DEAD_LETTERS
from tests.workers import fitted
from tests.workers.brokers import kill_broker, settings_for, start_broker
from tests.workers.roles.knowledge.test_later import AXES
from tests.workers.roles.knowledge.test_later import encode as encoded
from workers.catalogue.view import Entry
from workers.data.produce import EventProducer
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics
from workers.roles.knowledge.later import LaterItemsThread
from workers.roles.ranking.later import Arrivals, CatalogueFollower, PointFetcher
from workers.roles.ranking.ranker import Ranker
from workers.store.embedded.engine import EdgeItems
from workers.store.item_files import save_items
from workers.store.items import ItemPoint, QdrantItems

N = fitted.N
TEXTS = [f"{list(AXES)[row % 3]} {row}" for row in range(N)]


def publish(home: Path, version: str = "m1") -> Artifact:
    """Publish a version whose closed form reads sentence encodings."""
    rng = np.random.default_rng(0)
    past = Sequences(rng.integers(0, N, 400), np.arange(400), np.arange(0, 401, 10))
    known = ItemKnowledge(TEXTS, None, encoded(TEXTS))
    made = fitted.ranking_model()
    model = RankingModel(made.reference, made.fused, made.config | {"everyone": True},
                         Ease.fit(past, N, known, Parts(encoder=1.0)))
    model.fused.evidence_gain.fill_(20.0)
    registry = Registry(home)
    with registry.publish(version) as folder:
        model.save(folder, fitted.ITEMS, TEXTS)
        save_items(folder, None, known.encoded, "tiny")
        (folder / "calibration.json").write_text(fitted.CALIBRATION.model_dump_json())
        write_card(folder, Card(model_version=version, created_at=0, data_hash="", settings={}, split_time=0, files={}))
    registry.select(version)
    return registry.open(version)


def update(item: str, text: str) -> ItemUpdate:
    return ItemUpdate(item_id=item, version=1, about=about(text), similar=[Alike(item_id="i0", score=1.0)],
                      caused_at=0.0, written_at=0.0)


def test_an_item_is_taken_once_it_is_announced_and_its_encoding_is_read() -> None:
    arrivals = Arrivals()
    new = [("x", "soap"), ("y", "scent")]
    assert arrivals.to_read(new, True) == []
    assert not arrivals.ready("x", "soap", encodes=False)
    arrivals.said(update("x", "soap"))
    assert arrivals.to_read(new, True) == [("x", "soap")]
    assert arrivals.to_read(new, True) == []  # asked for already
    assert arrivals.ready("x", "soap", encodes=False)
    assert not arrivals.ready("x", "soap", encodes=True)
    arrivals.read("x", "soap", np.ones(2, np.float32))
    assert arrivals.ready("x", "soap", encodes=True)
    assert not arrivals.ready("x", "another text", encodes=True)
    arrivals.said(update("x", "another text"))
    assert arrivals.to_read([("x", "another text")], True) == [("x", "another text")]
    assert not arrivals.ready("x", "another text", encodes=True)


def test_what_is_unread_follows_the_catalogue_and_the_model(tmp_path: Path) -> None:
    publish(tmp_path)
    ranker = Ranker.load(Settings(home=tmp_path))
    ranker.take([Entry("x", 1, "X", "soap new"), Entry("y", 2), Entry("i1", 3, "other", "scent other")])
    assert ranker.unread == {N: "soap new"}  # one without a text has nothing to read, one of the fit has its users
    assert (ranker.row("x"), ranker.row("y"), ranker.encoded_dim) == (N, N + 1, 4)
    ranker.take([Entry("x", 4, "X", "soap newer")])
    assert ranker.unread == {N: "soap newer"}
    result = ranker.model.rank(RankBatch(histories=[[N, 3]], seen=[[]], knowledge=[None]))
    assert torch.isfinite(result.fused_logp[0, N + 1])
    ranker.take([Entry.gone("x", 5)])
    assert ranker.withheld is not None
    assert ranker.withheld.nonzero().flatten().tolist() == [N]


class AwayStore(EdgeItems):
    """The engine's store, which is away as often as it is told."""

    away = 2

    def read(self, item_ids: Collection[str]) -> dict[str, ItemPoint]:
        if self.away:
            self.away -= 1
            raise StoreUnavailableError("the store is away")
        return super().read(item_ids)


def test_encodings_are_read_when_the_store_is_back_and_those_of_an_old_text_are_waited_for(tmp_path: Path) -> None:
    store = AwayStore(tmp_path / "store", 4)
    store.ensure()
    store.upsert([ItemPoint("x", 1, "m1", encoded(["soap"])[0], "soap"),
                  ItemPoint("y", 1, "m1", encoded(["soap"])[0], "old")])
    points = PointFetcher(lambda _: store)
    points.ask("x", "soap", 4)
    points.ask("y", "scent", 4)
    found: list[str] = []
    deadline = time.monotonic() + 60
    while found != ["x"]:
        found += [item for item, _, _ in points.found()]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    store.upsert([ItemPoint("y", 2, "m1", encoded(["scent"])[0], "scent")])
    while found != ["x", "y"]:
        found += [item for item, _, _ in points.found()]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    points.close()


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    broker = start_broker("embedded", tmp_path)
    made = replace(Settings(), home=tmp_path / "home", kafka=settings_for(broker))
    create_topics(made.kafka)
    yield made
    kill_broker(broker)


@pytest.mark.slow
def test_an_item_is_recommended_seconds_after_it_came_and_again_after_a_restart(settings: Settings) -> None:
    artifact = publish(settings.home)
    store = QdrantItems(":memory:", 4)
    store.close = lambda: None  # type: ignore[method-assign]  # it holds the points

    def follower() -> tuple[Ranker, CatalogueFollower]:
        ranker = Ranker.load(settings)
        made = CatalogueFollower(ranker, settings, lambda _: store)
        made.catch_up()
        return ranker, made

    def reaches(ranker: Ranker, made: CatalogueFollower, item: str) -> None:
        deadline = time.monotonic() + 60
        while item not in ranker.catalogue.rows or ranker.unread:
            made.poll()
            assert time.monotonic() < deadline, (ranker.unread, made.counters(), thread.counters)
            time.sleep(0.02)

    def first(ranker: Ranker, history: list[str]) -> str:
        rank = ranker.model.rank(RankBatch(
            histories=[[ranker.row(item) for item in history]], seen=[[]], knowledge=[None], withheld=ranker.withheld))
        return ranker.items[int(rank.fused_logp[0].argmax())]

    calls: list[str] = []
    thread = LaterItemsThread(settings, artifact, lambda _: store,
                              lambda texts: (calls.extend(texts), encoded(texts))[1])
    ranker, made = follower()
    producer = EventProducer(settings.kafka)
    producer.record(CATALOGUE, "i5", encode(CatalogueItem(item_id="i5", title=TEXTS[5])))  # as the fit has it
    producer.record(CATALOGUE, "bad", b"no item")
    producer.record(CATALOGUE, "x", encode(CatalogueItem(item_id="x", title="new thing")))
    producer.record(CATALOGUE, "y", encode(CatalogueItem(item_id="y", title="new piece")))
    producer.flush()
    reaches(ranker, made, "y")
    assert first(ranker, ["x"]) == "y"  # nothing else is like it
    assert sorted(calls) == ["new piece", "new thing"]
    producer.record(CATALOGUE, "y", None)
    producer.flush()
    deadline = time.monotonic() + 30
    while ranker.withheld is None:
        made.poll()
        assert time.monotonic() < deadline
    assert first(ranker, ["x"]) != "y"
    made.close()
    thread.close()

    thread = LaterItemsThread(settings, artifact, lambda _: store,
                              lambda texts: (calls.extend(texts), encoded(texts))[1])
    ranker, made = follower()
    producer.record(CATALOGUE, "z", encode(CatalogueItem(item_id="z", title="new and last")))
    producer.flush()
    reaches(ranker, made, "z")
    assert first(ranker, ["x"]) == "z"
    assert calls[2:] == ["new and last"]  # the others are in the store
    letters = read_all(settings.kafka, [DEAD_LETTERS.name])
    assert [letter.key() for letter in letters] == [b"catalogue"]  # once, also after a restart
    made.close()
    thread.close()
