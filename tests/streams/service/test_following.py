"""Streams follows items that come after the fit, also with another model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.catalogue.update import Alike, ItemUpdate
from schemas.codec import encode
from schemas.settings import Settings
from schemas.topics import ITEM_UPDATES
from streams.decisions.planner import Planner
from streams.profile.catalogue import ItemVectors
from streams.service.following import ItemFollower
from tests.streams import cases
from tests.workers.brokers import kill_broker, settings_for, start_broker
from workers.data.produce import EventProducer
from workers.kafka.topics import create_topics

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    broker = start_broker("embedded", tmp_path)
    made = replace(cases.settings(), home=tmp_path, kafka=replace(settings_for(broker), prefix="one-"))
    create_topics(made.kafka)
    yield made
    kill_broker(broker)


def test_a_later_item_gets_a_vector_and_keeps_it_with_another_model(settings: Settings) -> None:
    planner = Planner(cases.item_vectors(), cases.CALIBRATION, settings, "m1")
    follower = ItemFollower(settings, planner)
    producer = EventProducer(settings.kafka)
    producer.record(ITEM_UPDATES, "bad", b"no update")
    producer.record(ITEM_UPDATES, "gone", None)
    producer.record(ITEM_UPDATES, "x", encode(ItemUpdate(
        item_id="x", version=1, about="0", similar=[Alike(item_id="i3", score=0.5)], caused_at=0.0, written_at=0.0)))
    producer.flush()
    deadline = time.monotonic() + 30
    while "x" not in planner.vectors.rows:
        asyncio.run(follower.follow())
        assert time.monotonic() < deadline
    vectors = planner.vectors
    assert vectors.vectors[vectors.rows["x"]] == pytest.approx(vectors.vectors[3], abs=1e-6)
    other = ItemVectors([f"i{n}" for n in range(5)], np.eye(5, dtype=np.float32))
    assert planner.follow(other, cases.CALIBRATION, "m2")
    asyncio.run(follower.follow())
    assert other.vectors[other.rows["x"]].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]
    follower.close()
