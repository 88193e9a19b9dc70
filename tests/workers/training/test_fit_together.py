"""`freshet fit` under torchrun (processes train together, one publishes) and after an interruption (it resumes)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from safetensors.numpy import load_file

from schemas.artifacts import Card, Registry
from schemas.settings import FitSettings, Settings
from tests.models import tiny
from workers.terminal.stages import Stages
from workers.training.fit import run, still_improving

ITEMS, USERS = 30, 50


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["user_id,item_id,timestamp"]
    for user in range(USERS):
        start = int(rng.integers(ITEMS))
        rows += [f"u{user},i{(start + step) % ITEMS},{1_600_000_000 + step * 3600 + user}"
                 for step in range(int(rng.integers(6, 14)))]
    (folder / "events.csv").write_text("\n".join(rows) + "\n")
    (folder / "items.jsonl").write_bytes(b"\n".join(
        orjson.dumps({"item_id": f"i{item}", "title": f"thing {item}"}) for item in range(ITEMS)))


def test_still_improving_names_scorers_whose_last_epoch_was_the_best() -> None:
    card = Card(
        model_version="v", created_at=0.0, data_hash="", settings={"fit": {"epochs": 12}},
        metrics={"reference_epoch": 10.0, "fused_epoch": 12.0, "epoch": 4.0}, revision="", split_time=0.0, files={})
    assert still_improving(card) == ["fused"]
    assert still_improving(card.model_copy(update={"metrics": {}})) == []


@pytest.mark.slow
@pytest.mark.parametrize("system", ["dense", "lwgr", "generative"])
def test_two_processes_publish_one_model(tmp_path: Path, system: str) -> None:
    write_data(tmp_path / "data")
    tiny.save(tmp_path / "llm")
    environment = os.environ | {
        "FRESHET_HOME": str(tmp_path / "home"), "FRESHET_FIT_DIM": "16", "FRESHET_FIT_EPOCHS": "2",
        "FRESHET_FIT_KNOWLEDGE_EPOCHS": "1", "FRESHET_FIT_DEVICE": "cpu", "FRESHET_LLM_DEVICE": "cpu",
        "FRESHET_LLM_NAME": str(tmp_path / "llm"), "FRESHET_LLM_DEPTH": "1.0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "workers.cli",
         "fit", "--data", str(tmp_path / "data"), "--system", system],
        check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    registry = Registry(tmp_path / "home")
    assert len(registry.versions()) == 1
    artifact = registry.open()
    assert artifact.card.settings["fit"]["system"] == system
    assert done.stdout.count("refresh thresholds: done") == 1  # the second process prints nothing


@pytest.mark.slow
def test_what_was_trained_before_an_interruption_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_data(tmp_path / "data")
    settings = replace(
        Settings(), home=tmp_path / "home", fit=FitSettings(system="dense", dim=16, epochs=2, device="cpu"))
    with Stages() as stages:
        first = run(settings, tmp_path / "data", stages)
        kept = load_file(first.folder / "reference.safetensors")
        shutil.rmtree(tmp_path / "home" / "models")

        def trained_again(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr("models.scorers.epochs.run_epoch", trained_again)
        second = run(settings, tmp_path / "data", stages)
    again = load_file(second.folder / "reference.safetensors")
    assert all(np.array_equal(again[name], weight) for name, weight in kept.items())
