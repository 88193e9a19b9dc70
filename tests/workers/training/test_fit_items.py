"""A fit from a folder with written knowledge: what is known of items is among the version's files and in the store."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch

from schemas.settings import FitSettings, ItemSettings, LlmSettings, QdrantSettings, Settings
from tests.models import tiny
from tests.models.language.test_sentences import save
from tests.workers.store.test_store import Server
from workers.roles.ranking.ranker import Ranker
from workers.store.item_files import ItemPoints
from workers.store.items import QdrantItems
from workers.terminal.stages import Stages
from workers.training.fit import run

pytestmark = pytest.mark.slow
ITEMS = 24


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    torch.set_num_threads(1)
    return Settings(
        home=tmp_path / "home", items=ItemSettings(encoder=str(save(tmp_path / "encoder"))),
        fit=FitSettings(dim=16, epochs=1, knowledge_epochs=1, instructions=2, codes=4),
        llm=LlmSettings(
            name=str(tiny.save(tmp_path / "llm")), device="cpu", depth=1.0, batch=4, item_tokens=8, history=6))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "knowledge").mkdir(parents=True)
    rng = np.random.default_rng(1)
    rows = [(f"u{user}", (start + step) % ITEMS, 1_600_000_000 + 3600 * step + 60 * user)
            for user, start in enumerate(rng.integers(ITEMS, size=30).tolist()) for step in range(8)]
    (folder / "events.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"{user},i{item},{time}\n" for user, item, time in rows))
    for name, fields in (("items.jsonl", {"title": "thing"}), ("knowledge/items.jsonl", {"keywords": "soft old"})):
        (folder / name).write_bytes(b"\n".join(
            orjson.dumps({"item_id": f"i{at}"} | {key: f"{text} {at}" for key, text in fields.items()})
            for at in range(ITEMS)))
    return folder


def test_item_knowledge_is_in_the_version_in_quotes_and_in_the_store(settings: Settings, shop: Path) -> None:
    with Stages() as stages:
        artifact = run(settings, shop, stages)
        points = ItemPoints(artifact, "tiny")
        assert (len(points), points.dim) == (ITEMS, 16)
        assert points[3].written.startswith("soft old ")
        item = points[3].item_id
        assert Ranker.load(settings).quotes([item]) == {item: points[3].written}
        server = Server(settings.home)
        with_store = replace(settings, qdrant=QdrantSettings(
            url=server.url, api_key=server.settings.api_key, timeout_s=30))
        assert run(with_store, shop, stages).model_version == artifact.model_version  # nothing is fitted again
        store = QdrantItems(server.url, points.dim, with_store.qdrant)
        held = store.read([item])[item]
        assert (store.count(), held.written, held.model_version) == (
            ITEMS, points[3].written, artifact.model_version)
        nearest = store.neighbours(points[3].vector, 1)
        assert nearest[0].score == pytest.approx(1.0, abs=1e-2)
        server.kill()
        # a store that is away is said, and no reason to fail
        assert run(with_store, shop, stages).model_version == artifact.model_version


def test_a_fit_alone_does_not_load_the_stores_client() -> None:
    code = ("import sys; import workers.training.fit; sys.exit('qdrant_client' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=110).returncode == 0
