from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from schemas.artifacts import Card, write_card
from schemas.deployments import Deployed, Deployments
from schemas.errors import FreshetError
from schemas.messages import ModelUpdate
from schemas.settings import KafkaSettings, Settings
from workers.runtime.model_updates import ModelUpdates, adapter_folder


def test_a_process_starts_with_what_the_log_says_whatever_the_broker_has_forgotten(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path)
    for version in ("m1", "m2"):
        with deployments.registry.publish(version) as folder:
            write_card(folder, Card(model_version=version, created_at=100.0, data_hash="", settings={}, split_time=0,
                                    files={}))
    deployments.registry.select("m2")
    for at, version in ((99.0, "m2+old"), (101.0, "m2+a"), (102.0, "m1+b"), (103.0, "m2+broken"), (104.0, "m2+c")):
        deployments.deploy(Deployed(by="alignment", update=ModelUpdate(
            model_version=version, adapter=f"adapters/{version[3:]}", published_at=at)))
    applied: list[str] = []

    def apply(update: ModelUpdate) -> None:
        if "broken" in update.model_version:
            raise FreshetError("its folder is gone")
        applied.append(update.model_version)

    nobody = replace(Settings(), home=tmp_path, kafka=KafkaSettings(bootstrap="127.0.0.1:9"))
    updates = ModelUpdates(nobody, "test", 100.0, apply)
    updates.catch_up(within_s=0.2)
    assert applied == ["m2+a", "m2+c"]  # in order, of the current fitted version, since its fit
    assert updates._since == 104.0  # what the topic has from before is history


def test_an_adapter_outside_the_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models" / "adapters" / "a").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert adapter_folder(tmp_path / "models", "adapters/a").is_dir()
    for name in ("../other", "/etc", "adapters/b"):
        with pytest.raises(FreshetError):
            adapter_folder(tmp_path / "models", name)
