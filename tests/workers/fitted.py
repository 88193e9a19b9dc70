"""A complete fitted model, tiny and random: reference, fusion, knowledge model and language model, in a registry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.compute.pca import condense
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.language.llm import LanguageModel
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.serving.ranking_model import RankingModel
from models.systems.lwgr.knowledge import KnowledgeModel
from schemas.artifacts import Artifact, Card, Registry, write_card
from schemas.calibration import Calibration
from schemas.settings import FitSettings, LlmSettings, RankingSettings, Settings
from tests.models import tiny

N, DIM = 30, 16
ITEMS = [f"i{row}" for row in range(N)]
CALIBRATION = Calibration(
    min_history=2, ttl_s=1e6, drift_mean=0.5, drift_sd=0.2, drift_prior=10, drift_slack=0.5, drift_threshold=5,
    drift_false_alarm_every=500, margin_bound=2.0, epsilon=0.2)


def settings_in(home: Path) -> Settings:
    """Settings with a tiny language model in `home`."""
    folder = home / "llm"
    if not folder.is_dir():
        tiny.save(folder)
    return replace(
        Settings(), home=home, fit=FitSettings(dim=DIM, instructions=3, codes=4), ranking=RankingSettings(top=5),
        llm=LlmSettings(name=str(folder), device="cpu", depth=1.0, batch=4, item_tokens=8, history=6))


def ranking_model(seed: int = 0) -> RankingModel:
    """A model whose knowledge changes scores strongly, by the vectors and by the evidence."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    shape = {"n_items": N, "dim": DIM, "layers": 1, "heads": 2, "max_len": 8, "dropout": 0.1}
    reference = Backbone(**shape)
    torch.nn.init.normal_(reference.items, std=0.5)
    fused = FusedScorer(condense(torch.randn(N, 24), 8).half().float(), torch.zeros(N, dtype=torch.bool), **shape)
    for weight in fused.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    fused.evidence_gain.fill_(3.0)
    fused.evidence_half_life.fill_(5.0)
    rng = np.random.default_rng(seed)
    past = Sequences(rng.integers(0, N, 400), np.arange(400), np.arange(0, 401, 10))
    return RankingModel(reference, fused, {"backbone": shape}, Ease.fit(past, N))


def publish(settings: Settings, version: str, seed: int = 0, created_at: float = 0.0) -> Artifact:
    """Publish a model version and make it the current one."""
    model, fit = ranking_model(seed), settings.fit
    llm = LanguageModel.load(settings.llm, settings.home / "cache")
    model.config["knowledge"] = {
        "dim": fit.dim, "hidden": llm.hidden_size, "instructions": fit.instructions, "codes": fit.codes,
        "llm": llm.model_id, "history": settings.llm.history}
    registry = Registry(settings.home)
    with registry.publish(version) as folder:
        model.save(folder, ITEMS, [f"{row} things" for row in range(N)], KnowledgeModel.create(fit, llm))
        (folder / "calibration.json").write_text(CALIBRATION.model_dump_json())
        write_card(folder, Card(
            model_version=version, created_at=created_at, data_hash="", settings={}, split_time=0, files={}))
    registry.select(version)
    return registry.open(version)
