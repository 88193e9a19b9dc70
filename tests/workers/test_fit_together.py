"""`freshet fit` started by torchrun: processes train together, one of them publishes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from schemas.artifacts import Registry
from tests.models import tiny

ITEMS, USERS = 30, 50


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["user_id,item_id,timestamp"]
    for user in range(USERS):
        start = int(rng.integers(ITEMS))
        rows += [f"u{user},i{(start + step) % ITEMS},{step * 3600 + user}" for step in range(int(rng.integers(6, 14)))]
    (folder / "events.csv").write_text("\n".join(rows) + "\n")
    (folder / "items.jsonl").write_bytes(b"\n".join(
        orjson.dumps({"item_id": f"i{item}", "title": f"thing {item}"}) for item in range(ITEMS)))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["dense", "lwgr"])
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
    assert done.stdout.count("refresh thresholds: done") == 1  # the second process says nothing
