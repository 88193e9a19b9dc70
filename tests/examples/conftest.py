"""What the examples need: a small data set, models fitted on it, and one stack for all that talk to a service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import tiny
from tests.system.conftest import fit
from tests.system.stack import Stack
from tests.system.world import write_data

ROOT = Path(__file__).parents[2]


class World:
    """A data set, and settings for small models in a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.home, self.data = folder / "home", write_data(folder / "data")
        self.settings = {
            "FRESHET_LLM_NAME": str(tiny.save(folder / "llm")), "FRESHET_LLM_DEVICE": "cpu", "FRESHET_FIT_DIM": "16",
            "FRESHET_FIT_EPOCHS": "4", "FRESHET_FIT_KNOWLEDGE_EPOCHS": "1", "FRESHET_FIT_INSTRUCTIONS": "3",
            "FRESHET_FIT_CODES": "8", "FRESHET_FIT_PARTS": "on", "FRESHET_ITEMS_ENCODER": "none"}

    def run(self, example: str, *arguments: str, **environ: str) -> str:
        """Run an example as its docstring says, and return what it printed.

        PYTHONPATH stands for the installed package: the tests may run in another checkout than the one installed.
        """
        plain = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
        done = subprocess.run(
            [sys.executable, f"examples/{example}.py", *arguments], cwd=ROOT, capture_output=True, text=True,
            check=False, timeout=170, env=plain | self.settings | environ | {
                "FRESHET_HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120"})
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="session")
def fitted(world: World) -> World:
    fit(world.home, world.data, world.settings)
    return world


@pytest.fixture(scope="session")
def stack(fitted: World) -> Iterator[Stack]:
    with Stack(fitted.home, **fitted.settings) as running:
        yield running
