"""Model versions of other systems in the ranking and knowledge workers, and switching between them at run time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.generative.scorer import Generative
from models.generative.semantic_ids import quantise
from models.scorers.backbone import Backbone
from models.serving.bake import behaviour_model
from models.serving.generative import GenerativeRanking
from models.serving.ranking_model import RankingModel
from schemas.artifacts import Artifact, Card, Registry, write_card
from schemas.errors import ArtifactError, DataError, FreshetError
from schemas.messages import KnowledgeRequest, ModelUpdate
from schemas.settings import Settings
from tests.workers.fitted import DIM, ITEMS, N, publish, settings_in
from tests.workers.roles.ranking.test_worker import judged, point, processor, request, split
from workers.roles.alignment.worker import Aligner
from workers.roles.knowledge.generator import LlmGenerator
from workers.roles.knowledge.worker import KnowledgeProcessor
from workers.roles.ranking.ranker import Ranker
from workers.store.embedded.engine import EdgeStore
from workers.terminal.stages import Stages
from workers.training.fit import WITHOUT_KNOWLEDGE, run
from workers.training.thresholds import recalibrate


def behaviour(dim: int = DIM) -> RankingModel:
    torch.manual_seed(0)
    return behaviour_model(Backbone(N, dim, 1, 2, 8, 0.1), "dense")


def generative() -> GenerativeRanking:
    torch.manual_seed(0)
    return GenerativeRanking(Generative(quantise(torch.randn(N, 8)), DIM, 1, 2, 8, 0.1))


def put(settings: Settings, version: str, model: RankingModel | GenerativeRanking) -> Artifact:
    registry = Registry(settings.home)
    with registry.publish(version) as folder:
        model.save(folder, ITEMS, ["a thing"] * N)
        (folder / "calibration.json").write_text(WITHOUT_KNOWLEDGE.model_dump_json())
        write_card(folder, Card(
            model_version=version, created_at=0.0, data_hash="", settings={}, split_time=0, files={}))
    registry.select(version)
    return registry.open(version)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


def test_a_system_without_knowledge_loads_no_language_model(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = put(settings, "d1", behaviour())
    with monkeypatch.context() as patch:
        patch.setattr("models.language.llm.LanguageModel.load", lambda *_: pytest.fail("loaded"))
        generator = LlmGenerator.load(settings, artifact)
    assert (generator.dim, generator.model_version) == (DIM, "d1")
    with pytest.raises(FreshetError, match="model d1 has no knowledge"):
        generator.generate([["i1"]])
    with pytest.raises(FreshetError, match="no knowledge"):
        Aligner.load(settings, artifact)
    with pytest.raises(DataError, match="nothing is ever refreshed"):
        recalibrate(artifact, Path(), settings, 100.0)


def test_workers_switch_between_versions_with_and_without_knowledge(settings: Settings) -> None:
    publish(settings, "m1")
    generator = LlmGenerator.load(settings, put(settings, "d1", behaviour()))
    ranker = Ranker.load(settings)
    for wanted in ("m1", "d1", "m1"):
        update = ModelUpdate(model_version=wanted, published_at=1.0)
        generator.apply(update)
        ranker.apply(update)
        assert generator.model_version == ranker.model_version == wanted
    made = generator.generate([["i1", "i2"]], ["ann"])
    assert np.abs(made.vectors).sum() > 0
    put(settings, "w1", behaviour(dim=32))
    for role in (generator, ranker):
        with pytest.raises(ArtifactError, match="32 wide"):
            role.apply(ModelUpdate(model_version="w1", published_at=1.0))
        assert role.model_version == "m1"
    np.testing.assert_array_equal(generator.generate([["i1", "i2"]], ["ann"]).vectors, made.vectors)


def test_requests_from_before_a_model_without_knowledge_came_into_use_stop_no_worker(
    settings: Settings, tmp_path: Path,
) -> None:
    generator = LlmGenerator.load(settings, put(settings, "d1", behaviour()))
    with_store = EdgeStore(tmp_path / "store", DIM)
    with_store.ensure()
    work = KnowledgeProcessor(generator, with_store, 4)
    asked = [KnowledgeRequest(
        user_id="ann", version=1, reason="cold_start", history=["i1"], count=2, event_id="e", event_time=10.0,
        caused_at=1.0, requested_at=2.0)]
    assert list(work(asked)) == []
    with_store.close()
    assert (work.counters["requests"], work.counters["not_needed"]) == (1, 1)


@pytest.mark.parametrize("model", [behaviour, generative])
def test_a_system_without_knowledge_is_served_unchanged(model: type, settings: Settings, tmp_path: Path) -> None:
    put(settings, "b1", model())
    ranker = Ranker.load(settings)
    store = EdgeStore(tmp_path / "store", DIM)
    store.ensure()
    store.upsert([point("ann", model_version="m1")])
    many = [f"i{row}" for row in range(N)]
    recs, judgements = split(processor(ranker, store)([
        request("ann", judged=[judged("i4", 3, 4)]), request("ben", history=["i1", "unknown"], seen=many[:-3]),
        request("cis", history=many)]))
    store.close()
    assert judgements == {}
    assert [len(recs[user].items) for user in ("ann", "ben", "cis")] == [5, 3, 0]
    assert {item.item_id for item in recs["ben"].items} == set(many[-3:])
    for rec in recs.values():
        assert rec.source == "reference"
        assert [item.item_id for item in rec.items] == rec.reference
        assert all(-100 < item.score < 0 for item in rec.items)
    assert recs["ann"].fallback == "old_knowledge"  # generated by another model


def test_an_unknown_system_is_refused_before_anything_is_read(settings: Settings, tmp_path: Path) -> None:
    wrong = replace(settings, fit=replace(settings.fit, system="nope"))
    with Stages() as stages, pytest.raises(FreshetError, match="there are dense, "):
        run(wrong, tmp_path / "no data", stages)
