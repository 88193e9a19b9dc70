from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import tiny
from tests.system.stack import Stack, command
from tests.system.world import write_data
from tests.workers.brokers import BROKERS, kill_broker, start_broker


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return settings for small models, including a tiny language model."""
    return {
        "FRESHET_LLM_NAME": str(tiny.save(tmp_path_factory.mktemp("llm"))), "FRESHET_LLM_DEVICE": "cpu",
        "FRESHET_FIT_DIM": "16", "FRESHET_FIT_EPOCHS": "8", "FRESHET_FIT_KNOWLEDGE_EPOCHS": "2",
        "FRESHET_FIT_INSTRUCTIONS": "3", "FRESHET_FIT_CODES": "8", "FRESHET_FIT_PARTS": "on",
    }


def fit(home: Path, data: Path, settings: dict[str, str], *arguments: str) -> None:
    """Run `freshet fit`."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
    done = subprocess.run(
        command("fit", "--data", str(data), *arguments), capture_output=True, text=True, timeout=240, check=False,
        env=environ | settings | {"FRESHET_HOME": str(home), "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, data: Path, small: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """Return a home with models fitted by `freshet fit`, and its settings."""
    folder = tmp_path_factory.mktemp("fitted")
    fit(folder / "home", data, small)
    return folder / "home", small


@pytest.fixture
def home(fitted: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """Return a new home for the test, with the fitted models."""
    return Path(shutil.copytree(fitted[0], tmp_path / "home", ignore=shutil.ignore_patterns("run", "streams", "store")))


@pytest.fixture(params=BROKERS)
def stack(request: pytest.FixtureRequest, fitted: tuple[Path, dict[str, str]], home: Path, tmp_path: Path
          ) -> Iterator[Stack]:
    """Yield a running stack, on the embedded broker and on Apache Kafka."""
    settings = fitted[1]
    if request.param == "embedded":
        with Stack(home, **settings) as running:
            yield running
        return
    broker = start_broker("kafka", tmp_path)
    try:
        with Stack(home, broker.bootstrap, **settings) as running:
            yield running
    finally:
        kill_broker(broker)
